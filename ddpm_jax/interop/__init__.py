"""Weights of other programs: their names and layouts of arrays, their files and their configs, in terms of ours."""
