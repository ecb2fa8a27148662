"""NNCF 2.x's API: its training loops, `create_compressed_model`, and its configuration files.

Start reading in `loops.py`; `config.py` reads a file, whose algorithm sections are in `sections.py`, `algorithms.py`
and `quantization.py`, and `parameters.py` turns a file into parameters of a Kedro project. Names, arguments and
defaults follow NNCF 2.19 and must stay; messages and what a key is translated to can change.
"""
