"""The runtime of a run: devices, checkpoints, logs, folders, errors."""
