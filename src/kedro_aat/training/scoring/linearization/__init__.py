"""One score per example for metrics that are functions of sums over examples, such as F1, IoU, AUROC or RMSE.

The score is the metric plus the example's first-order influence on it (the delta method, or infinitesimal jackknife:
Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 22). The mean of the scores is the metric, and the
standard error of their mean is that of the metric, so two models are compared example by example without resampling.

Start with `linearizer.py`, which knows which metric belongs to which of three kinds: `tables.py` for metrics that count
predicted labels, `ranks.py` for AUROC and average precision, `sums.py` for all others whose state is a sum. Each checks
at run time that it reproduces the metric, and gives up otherwise; new kinds can be added safely if they do so too.
"""

from kedro_aat.training.scoring.linearization.linearizer import Linearizer, linearizer_for

__all__ = ["Linearizer", "linearizer_for"]
