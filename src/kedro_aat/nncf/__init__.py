"""The API of NNCF 2.x: its training loops, `create_compressed_model`, and its configuration files.

Start reading in `loops.py`; `config.py` reads a file, `sections.py` translates the algorithms that it names, and
`parameters.py` turns a whole file into parameters of a Kedro project. Names, arguments and defaults follow NNCF 2.19
and must stay; messages, and what a key is translated to, can change.
"""
