"""Estimates of memory and time on machines that need not be present, from programs that are compiled for them."""
