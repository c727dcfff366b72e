"""Pretraining runs: options, folders, checkpoints, stopping and resuming."""
