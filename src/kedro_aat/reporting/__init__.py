"""What people read after a run: the closing table, the HTML report, the model card and numbers for trackers.

Start reading in `summary.py`, which makes the summary that everything else shows; `numbers.py` turns it into the rows
of all tables. Nothing here changes a result, so everything can be changed safely, except the keys of files that
users' tools read.
"""
