"""The runtimes that a model can be delivered for beside ONNX Runtime and torch: OpenVINO, ExecuTorch and LiteRT.

Start with `target.py`; `registry.py` lists all. The packages of a target are imported when it is used, so one that is
not installed costs nothing.
"""
