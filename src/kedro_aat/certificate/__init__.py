"""The statistics of the accuracy budget: standard errors, the one test that certifies a model, and its power.

All comparisons are paired: baseline and candidate are scored on the same examples, so only the examples on which they
differ speak. A *drop* is baseline minus candidate where higher scores are better and the reverse where lower ones are,
so a positive drop is always a loss. *Lost* examples are those on which the candidate is worse, *won* those on which it
is better.
"""

from kedro_aat.certificate.power import Forecast, examples_needed, examples_to_certify, forecast, power
from kedro_aat.certificate.settings import CertificateSettings
from kedro_aat.certificate.standard_error import bootstrap_standard_error, paired_standard_error
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
