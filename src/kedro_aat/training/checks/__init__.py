"""Questions a baseline whose metric means nothing, and targets that metric or loss misread, before anything is trained.

Start reading at `baseline.py`. Each question is a function that returns texts, so one can be added or removed alone.
"""
