"""Handwritten digits: the data and the baseline model that this repository compresses."""
