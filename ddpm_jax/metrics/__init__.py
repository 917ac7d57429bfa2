"""Sample quality: arrays in, numbers out."""
