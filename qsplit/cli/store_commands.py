"""Commands that look after a store."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsplit.cli.exit_codes import ExitCode
from qsplit.cli.options import album_options, json_option, store_options
from qsplit.cli.output import megabytes, print_json, print_skipped, print_status, print_verified

if TYPE_CHECKING:
    from qsplit.album import Album

__all__ = ["COMMANDS"]


@click.command()
@store_options
@json_option
def status(album: Album, as_json: bool) -> None:
    """Show what the store holds."""
    found = album.status()
    print_json(found) if as_json else print_status(found)


@click.command()
@click.option("--drift", type=click.IntRange(min=0), default=0, metavar="N", help="Encode N pictures again, compare.")
@album_options
@json_option
def verify(album: Album, drift: int, as_json: bool) -> ExitCode:
    """Read everything that the store holds and compare it with what was put in. Changes nothing.

    Exits with 4 if anything is damaged, with 1 if nothing is and the model gave NaN or infinity for some pictures.
    """
    found = album.verify(drift=drift)
    if as_json:
        print_json(found)
    else:
        print_verified(found)
    if not found.sound:
        return ExitCode.CORRUPT
    return ExitCode.PARTLY_FAILED if found.drift and found.drift.failed else ExitCode.DONE


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@album_options
@json_option
def forget(album: Album, images: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Remove pictures from the store, with all that was made of them. The files themselves are not touched."""
    gone = album.forget(images, dry_run=dry_run)
    if as_json:
        print_json(gone)
        return
    click.echo(
        f"{gone.images} images in {gone.files} files, {gone.features} features {'would go' if dry_run else 'gone'}: "
        f"{megabytes(gone.before)} -> {megabytes(gone.after)}"
    )


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("--alone", is_flag=True, help="Nobody else writes: also remove what was left less than an hour ago.")
@click.option(
    "--served", type=click.FloatRange(0), metavar="DAYS", help="Also remove what vLLM put more than DAYS ago."
)
@album_options
@json_option
def compact(album: Album, dry_run: bool, alone: bool, served: float | None, as_json: bool) -> None:
    """Remove what interrupted runs left and what is forgotten, and drop older versions that no snapshot names."""
    served_for = None if served is None else timedelta(days=served)
    done = album.compact(dry_run=dry_run, alone=alone, served_for=served_for)
    if as_json:
        print_json(done)
        return
    click.echo(
        f"{len(done.orphans)} orphans, {done.fragments} fragments {'would be ' if dry_run else ''}rewritten: "
        f"{megabytes(done.before)} -> {megabytes(done.after)}"
    )


@click.command()
@click.argument("name", required=False)
@click.option("--restore", "action", flag_value="restore", help="Make the store what it was at NAME.")
@click.option("--delete", "action", flag_value="delete", help="Let go of NAME; `qsplit compact` gives its room back.")
@album_options
@json_option
def snapshot(album: Album, name: str | None, action: str | None, as_json: bool) -> None:
    """Keep the store as it is now under NAME; without NAME, list the snapshots. Commands read one with --at."""
    if name is None and action:
        raise click.UsageError(f"Give the NAME of the snapshot to {action}.")
    snapshots = album.snapshots
    if name is not None:
        {"restore": snapshots.restore, "delete": snapshots.delete, None: snapshots.make}[action](name)
    for kept, made in snapshots.all().items():
        print_json({"name": kept, "made_at": made}) if as_json else click.echo(f"{made:%Y-%m-%d %H:%M:%S}  {kept}")


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.argument("images", nargs=-1, metavar="[IMAGE...]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["safetensors", "vllm"]),
    default="safetensors",
    show_default=True,
    help="Tensors, or parts of a chat with a vLLM server.",
)
@album_options
@json_option
def export(album: Album, out: Path, images: tuple[str, ...], form: Any, as_json: bool) -> ExitCode:
    """Write the features of some pictures, or of all, into the folder OUT: a file for each, named by its id."""
    from qsplit.store.records import Skipped

    written, skipped = 0, []
    for one in album.export(out, images, form=form):
        if isinstance(one, Skipped):
            skipped.append(one)
            continue
        written += 1
        print_json(one) if as_json else click.echo(f"{one.file}  {one.tokens} tokens  {one.path or ''}")
    click.echo(f"{written} pictures written, {len(skipped)} skipped", err=True)
    print_skipped(skipped)
    return ExitCode.PARTLY_FAILED if skipped else ExitCode.DONE


COMMANDS = (status, verify, forget, compact, snapshot, export)
