"""Fine-tuning under an accuracy budget. Begin with `loop.py`."""
