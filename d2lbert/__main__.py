"""`python -m d2lbert` is the command `d2lbert`."""

from d2lbert.cli import main

main()
