"""The command line: parse, call, print.

Every command has ``--json``: one object, or one object a line, on stdout; everything else goes to stderr. How a command
ends is told by its exit code, see `qsplit.cli.exit_codes`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import click

from qsplit import __version__
from qsplit.cli import album_commands, model_commands, store_commands
from qsplit.cli.exit_codes import ExitCode
from qsplit.cli.output import print_json
from qsplit.errors import QsplitError

__all__ = ["cli", "main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line and exit; a failure is printed as a sentence, or with ``--json`` as an object."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = cli.main(arguments, prog_name="qsplit", standalone_mode=False)
    except click.Abort:
        code = ExitCode.INTERRUPTED
    except click.ClickException as error:
        if "--json" not in arguments:
            error.show()
        code = _fail("UsageError", error.format_message(), "See --help.", arguments, shown=True, code=ExitCode.USAGE)
    except QsplitError as error:
        code = _fail(type(error).__name__, error.message, error.fix, arguments, shown=False, code=error.exit_code)
    sys.exit(code or 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="qsplit")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to stderr.")
def cli(verbose: bool) -> None:
    """Look once, ask for ever: image features that are computed once, kept, searched and asked about."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


for command in (*album_commands.COMMANDS, *store_commands.COMMANDS, *model_commands.COMMANDS):
    cli.add_command(command)


def _fail(kind: str, message: str, fix: str, arguments: Sequence[str], *, shown: bool, code: int) -> int:
    if "--json" in arguments:
        print_json({"error": {"type": kind, "message": message, "fix": fix}})
    elif not shown:
        click.echo(f"Error: {message}", err=True)
        if fix:
            click.echo(f"  {fix}", err=True)
    return code
