"""Brings the pipeline into another Kedro project: the `kedro aat` commands, their templates, and checks without a run.

Start reading in `commands.py`; `checks.py` also serves the hook that runs before every pipeline. Texts and checks can
change freely; the keys and file paths in `templates/` must agree with `conf/base`, which a test checks.
"""
