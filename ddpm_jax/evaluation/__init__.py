"""Evaluation: what is measured of a model and of its samples."""
