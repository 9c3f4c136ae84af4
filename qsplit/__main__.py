"""``python -m qsplit`` is the command line."""

from qsplit.cli.main import main

main()
