"""The runtimes that a model can be delivered for: ONNX Runtime, OpenVINO, ExecuTorch, LiteRT and torch's own.

Start with `target.py`. A target that is not installed costs nothing: its packages are imported when it is used.
"""
