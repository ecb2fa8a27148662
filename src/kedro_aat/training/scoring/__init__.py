"""What a validation knows beside its metric: a score per example, or resamples, for standard errors and certificates.

Start reading at `watchers.py`, which lists the ways from the best to the one that always works. A way that does not
reproduce the metric must say so, since a wrong standard error is worse than none.
"""
