"""The textbook's own package held against ours: `make oracle`.

`textbook` runs beside d2l 1.0.3, in an environment of its own; `ours` runs
beside this project; both read their inputs from `cases`, and `compare` holds
their results against each other.
"""
