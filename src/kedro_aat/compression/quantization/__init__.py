"""8-bit quantization: rounding is simulated while the model trains, and its layers hold integers at the end.

Start reading in `controller.py`. `calls.py` and `placement.py` decide which tensors are rounded, `fake.py` rounds them
during training, and `convert.py` and `layers.py` make the model that holds integers. What can be quantized can be
extended safely in `weights.py` and `placement.py`. Changes to `arithmetic.py` must compute what onnxruntime computes,
which `tests/export/test_quantized.py` checks; the specs in `layers.py` and `placement.py` are saved with models and
controllers, so old ones must still load.
"""
