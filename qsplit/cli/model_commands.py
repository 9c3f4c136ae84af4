"""Commands that split a checkpoint, serve it, and show what works here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsplit.cli.exit_codes import ExitCode
from qsplit.cli.options import album_options, json_option
from qsplit.cli.output import megabytes, print_json
from qsplit.config import Settings
from qsplit.errors import UsageError

if TYPE_CHECKING:
    from qsplit.album import Album

__all__ = ["COMMANDS"]


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--revision", default="", help="The commit of a hub id.")
@click.option("--probe", "probed", is_flag=True, help="Write down what it answers, for --language to know a server by.")
@json_option
def split(model: str, out: Path, revision: str, probed: bool, as_json: bool) -> None:
    """Write OUT/vision and OUT/language: each half of MODEL as a folder that can be loaded without the other."""
    from qsplit.models.splitting import probe
    from qsplit.models.splitting import split as split_checkpoint

    done = split_checkpoint(model, out, revision=revision, cache=Settings.from_env().cache)
    if probed:
        probe(out)
    if as_json:
        print_json(done)
        return
    for one in done.halves:
        click.echo(
            f"{one.half:9} {megabytes(one.bytes)} of {megabytes(done.bytes)}, {one.parameters:,} parameters"
            f"{'' if one.written else ', there already'}: {one.folder}"
        )


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False), metavar="[FOLDER...]")
@album_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; another needs QSPLIT_KEYS.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 is any free one.")
@click.option(
    "--role",
    type=click.Choice(["all", "vision", "language"]),
    default="all",
    show_default=True,
    help="Which half of the model this process may load.",
)
@click.option("--uploads", default="", metavar="FOLDER", help="Keep pictures that are sent in here [STORE.uploads].")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="A name it is called by; repeatable.")
@click.option("--allow-origin", "origins", multiple=True, metavar="URL", help="A site whose pages may call it.")
@click.option("--remote-images", is_flag=True, help="Fetch pictures that chats name by a public address.")
@click.option("--queue", type=click.IntRange(min=1), default=64, show_default=True, help="Requests that may wait.")
@click.option(
    "--deadline", "deadline_s", type=click.FloatRange(min=1), default=120, help="Seconds until an answer is cut [120]."
)
@click.option(
    "--max-answer-tokens", type=click.IntRange(min=1), metavar="N", help="Cut answers after N tokens [the context]."
)
@click.option("--log-json", is_flag=True, help="Log a JSON object a line.")
@json_option
def serve(album: Album, as_json: bool, **options: Any) -> None:
    """Serve the album over HTTP: its page at /, OpenAI's API at /v1, its own at /api/v1. Jobs index the FOLDERs.

    QSPLIT_KEYS and QSPLIT_READ_ONLY_KEYS hold keys with commas between them; without any, only this machine is served.
    """
    try:
        from qsplit.server.config import ServeOptions
        from qsplit.server.run import run
    except ImportError as error:
        raise UsageError(f"The service needs {error.name}.", fix="pip install 'qsplit[serve]'") from error
    if album.language_server and options["role"] == "vision":
        raise UsageError("A service with the vision half alone answers nothing.", fix="Leave --language out.")
    settings = Settings.from_env()
    run(
        album,
        ServeOptions(keys=_several(settings.keys), read_only_keys=_several(settings.read_only_keys), **options),
        lambda served: print_json(served) if as_json else click.echo(f"Serving {served.store} at {served.url}"),
    )


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@click.command()
@album_options
@json_option
def doctor(album: Album, as_json: bool) -> ExitCode:
    """Show what is installed, which devices and checkpoint there are, and what would fail."""
    from qsplit.cli.doctor import diagnose

    checks = diagnose(album)
    for check in checks:
        if as_json:
            print_json(check)
        else:
            click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.found}")
            if check.fix:
                click.echo(f"      {check.fix}")
    return ExitCode.DONE if all(check.ok for check in checks) else ExitCode.PARTLY_FAILED


@click.command()
@click.option("--folder", metavar="FOLDER", help="Keep pictures and store here [a temporary folder].")
@json_option
def demo(folder: str | None, as_json: bool) -> ExitCode:
    """Index the sample album, find copies and neighbours, ask in new processes, and compare with the unsplit model."""
    from qsplit.mini.demo import run

    report = run(folder, say=lambda text: click.echo(text, err=as_json))
    if as_json:
        print_json(report)
    return ExitCode.DONE if report.equal else ExitCode.PARTLY_FAILED


COMMANDS = (split, serve, doctor, demo)
