"""What leaves the house: ONNX and `torch.export` files, read back, compared with the model, and measured."""
