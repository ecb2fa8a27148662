"""What large models cost in memory and time: one module per bar, started by `python -m benchmarks.scale`."""
