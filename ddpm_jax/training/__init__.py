"""Training state, step, optimizer and weight averages."""
