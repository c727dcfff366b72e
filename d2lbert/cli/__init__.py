"""The `d2lbert` command: a module for each group of subcommands.

Exit status: 0 done, 1 failed, 2 bad input, 130 and 143 stopped by Ctrl-C
and by SIGTERM.
"""

from d2lbert.cli.app import main as main
