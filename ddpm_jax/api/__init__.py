"""The Python interface, whose names `import ddpm_jax` has: functions.py, and `Run` in run.py with its parts in the others."""
