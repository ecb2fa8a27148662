"""The statistics of the accuracy budget: standard errors, the one test that certifies a model, and its power.

All comparisons are paired: baseline and candidate are scored on the same examples, so only the examples on which they
differ count. A *drop* is baseline minus candidate if higher scores are better, and the reverse if lower ones are, so a
positive drop is always a loss. *Lost* examples are those on which the candidate is worse, *won* those on which it is
better.

Start with `verdict.py`, the test; `p_values.py` has its mathematics, `upper_bound.py` the bound that follows from it,
`power.py` predicts its result, `paired_scores.py` computes standard errors, and `ledger.py` records which model each
test split was read for. Forecasts and messages can be changed safely; a change of a p-value is a change of what every
certificate means.
"""

from kedro_aat.certificate.paired_scores import bootstrap_standard_error, paired_standard_error
from kedro_aat.certificate.power import (
    CertificateSettings,
    Forecast,
    examples_needed,
    examples_to_certify,
    forecast,
    power,
)
from kedro_aat.certificate.verdict import Certificate, certify

__all__ = [
    "Certificate",
    "CertificateSettings",
    "Forecast",
    "bootstrap_standard_error",
    "certify",
    "examples_needed",
    "examples_to_certify",
    "forecast",
    "paired_standard_error",
    "power",
]
