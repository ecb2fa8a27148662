"""Compression controllers: what is taken from a model at a given rate."""
