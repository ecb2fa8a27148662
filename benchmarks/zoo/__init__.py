"""Which published architectures can be compressed: filters cut, weights zeroed, int8, each exported and compared.

Start with `__main__`; `models` lists the architectures, `measure` does the work on one, `table` writes `docs/zoo.md`.
"""
