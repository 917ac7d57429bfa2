"""Plots: image grids, film strips and charts."""
