"""Commands beside the training: converting weights, examining a machine."""
