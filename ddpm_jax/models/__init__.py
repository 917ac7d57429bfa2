"""Flax Linen networks, independent of the diffusion process."""
