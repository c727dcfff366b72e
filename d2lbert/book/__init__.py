"""The names of the book, which both tabs offer to its readers."""
