"""A run on disk: begun, stopped, resumed."""
