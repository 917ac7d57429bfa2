"""Flax Linen networks; they know nothing of diffusion."""
