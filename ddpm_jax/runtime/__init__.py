"""The machine around a run: devices, checkpoints, logs, folders, errors."""
