"""``python -m qsplit`` is the command line."""

from qsplit.cli import main

main()
