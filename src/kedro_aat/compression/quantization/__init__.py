"""8-bit quantization: rounding is simulated while the model trains, and its layers hold integers at the end.

Start reading in `controller.py`; `calls.py` and `placement.py` decide where tensors are rounded, `fake.py` rounds
during training, `convert.py` and `layers.py` make the integer model. `placement.py` can be extended freely; the
arithmetic in `arithmetic.py` and `qdq.py` is what onnxruntime computes, so a change there needs the exported files'
tests.
"""
