"""What the notebooks look at, in numbers and in pictures."""
