"""The numbers and pictures of the notebooks."""
