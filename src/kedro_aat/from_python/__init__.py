"""The way in from plain Python: `compress`, which runs the nodes of the `aat` pipeline without a Kedro project.

Start reading in `call.py`. What the pipeline does is defined by its nodes alone; here stands only how arguments become
settings and data, where files go, and what is returned.
"""
