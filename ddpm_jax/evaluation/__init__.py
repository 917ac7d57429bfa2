"""Evaluation of models and of generated images."""
