"""The book's own names, which the tabs give on to a reader of it."""
