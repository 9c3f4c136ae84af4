"""What commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from qsplit.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from qsplit.duplicates.detector import Group, Member
    from qsplit.duplicates.trash import Moved
    from qsplit.indexing.pipeline import IndexReport
    from qsplit.maintenance.status import Status
    from qsplit.maintenance.verify import Verified
    from qsplit.progress import Progress
    from qsplit.qa.ask import Reply
    from qsplit.store.records import Skipped

__all__ = [
    "ProgressLine",
    "megabytes",
    "print_group",
    "print_json",
    "print_moved",
    "print_reply",
    "print_report",
    "print_skipped",
    "print_status",
    "print_verified",
    "printable",
]

_SHOWN = 10  # lines of a list that may be as long as the album


class ProgressLine:
    """Progress on stderr: one line that is drawn over on a terminal, a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._printed = 0.0

    def show(self, progress: Progress) -> None:
        minutes, seconds = divmod(round(progress.remaining), 60)
        text = f"{progress.done}/{progress.total} {progress.what}  {progress.rate:.1f}/s  ETA {minutes}:{seconds:02d}"
        if self._terminal:
            click.echo(f"\r\033[K{text}", nl=False, err=True)
        elif progress.seconds - self._printed >= 10 or progress.done == progress.total:
            self._printed = progress.seconds
            click.echo(text, err=True)

    def clear(self) -> None:
        if self._terminal:
            click.echo("\r\033[K", nl=False, err=True)


def print_json(result: Any) -> None:
    """Print a result as one line of JSON."""
    click.echo(json.dumps(result if isinstance(result, dict) else asdict(result), ensure_ascii=False, default=str))


def print_report(report: IndexReport, *, as_json: bool) -> ExitCode:
    """Print what an index came to; how the command ends."""
    if as_json:
        print_json(report)
    else:
        click.echo(
            f"{report.found} found: {report.encoded} encoded, {report.reused} reused, {report.unchanged} unchanged, "
            f"{report.missing} missing, {len(report.unreadable)} unreadable, in {report.seconds:.1f} s"
        )
        if report.semantic or report.captions:
            click.echo(f"{report.semantic} semantic vectors and {report.captions} captions made")
        print_skipped([*report.unreadable, *report.unsearchable])
    return ExitCode.PARTLY_FAILED if report.unreadable or report.unsearchable else ExitCode.DONE


def print_skipped(skipped: Sequence[Skipped]) -> None:
    """Print the files that were left out, and why, to stderr."""
    for one in skipped:
        click.echo(f"  {one.path}: {one.reason}", err=True)


def print_reply(reply: Reply, *, as_json: bool, streamed: bool) -> None:
    """Print an answer, unless it was streamed already."""
    if as_json:
        print_json(reply)
        return
    click.echo("" if streamed else printable(reply.answer))
    if not reply.exact:
        why = "were kept with loss, made on another kind of device or with another attention, are of another dtype"
        click.echo(f"(not exact: the features {why}, or vouched for)", err=True)


def print_group(group: Group, *, as_json: bool) -> None:
    """Print files that show one picture, the one to keep first."""
    if as_json:
        print_json(group)
        return
    click.echo(f"{group.kind}: keep {group.keep}")
    for member in group.members[1:]:
        why = member.evidence
        told = (
            f"  ({why.tokens} patches, {why.landmarks} landmarks, {why.agreement:.0%} of pixels agree)" if why else ""
        )
        click.echo(f"  {member.score:.3f}  {member.path}{told}{_why_it_stays(member)}")


def _why_it_stays(member: Member) -> str:
    return "" if member.movable else f"  stays: {member.reason}" if member.reason else "  stays"


def print_moved(moved: Iterable[Moved], *, as_json: bool) -> ExitCode:
    """Print what became of each file, as it happens; how the command ends."""
    states = []
    for one in moved:
        states.append(one.state)
        if as_json:
            print_json(one)
        else:
            click.echo(f"{one.state}: {one.path}{f': {one.reason}' if one.reason else ''}")
    if not states:
        click.echo("There is nothing to move.", err=True)
        return ExitCode.NOTHING_FOUND
    return ExitCode.PARTLY_FAILED if "left" in states else ExitCode.DONE


def print_status(found: Status) -> None:
    """Print what a store holds."""
    click.echo(f"{found.store} (schema {found.schema}, model {found.model or 'none yet'})")
    click.echo(f"  {found.images} images in {found.files} files, {found.missing} missing")
    click.echo(f"  {found.features} features, {found.stale} images stale; {megabytes(found.bytes['total'])} on disk")
    for encoder in found.encoders:
        mark = "*" if encoder.current else " "
        click.echo(
            f"  {mark} encoder {encoder.id[:12]}: {encoder.features} x {encoder.dtype} {encoder.width}, "
            f"{encoder.compute}, {', '.join(encoder.models)}"
        )
        if encoder.semantic or encoder.captions:
            ways = f", made in {len(encoder.semantic)} ways" if len(encoder.semantic) > 1 else ""
            click.echo(f"      {sum(encoder.semantic.values())} semantic vectors{ways}, {encoder.captions} captions")
        for made in encoder.made_by:
            click.echo(
                f"      {made.features} by torch {made.torch}, transformers {made.transformers}, torchvision "
                f"{made.torchvision}, Pillow {made.pillow} on {made.device}, {made.attention}"
            )
    for path in found.lacking[:_SHOWN]:
        click.echo(f"  stale: {path}")
    if len(found.lacking) > _SHOWN:
        click.echo(f"  stale: and {len(found.lacking) - _SHOWN} more; `qsplit refresh` encodes them")
    for name in found.snapshots:
        click.echo(f"  snapshot: {name}")
    for skipped in found.skipped:
        click.echo(f"  unreadable: {skipped.path}: {skipped.reason}")


def print_verified(found: Verified) -> None:
    """Print what of a store is not as it was put in."""
    click.echo(
        f"{found.checked} payloads read: {len(found.corrupt)} rows corrupt, {len(found.duplicate_keys)} keys doubled, "
        f"{len(found.missing)} missing, {len(found.orphans)} orphans"
    )
    for corrupt in found.corrupt:
        click.echo(f"  corrupt: {corrupt.table} {corrupt.key[:24]}: {corrupt.reason}")
    for name in found.duplicate_keys:
        click.echo(f"  doubled: {name}")
    for name in found.missing:
        click.echo(f"  missing: {name}")
    if found.drift is None:
        return
    drift = found.drift
    click.echo(
        f"{drift.pictures} looked at again: {drift.equal} the same bits, largest difference {drift.largest:.3g}, mean "
        f"{drift.mean:.3g}, lowest cosine {drift.cosine:.6f}; {drift.equal_answers} the same answers, largest "
        f"difference of a logit {drift.largest_logit:.3g}"
    )
    for skipped in drift.skipped:
        click.echo(f"  skipped: {skipped.path}: {skipped.reason}")
    for failed in drift.failed:
        click.echo(f"  failed: {failed.path}: {failed.reason}")


def printable(text: str) -> str:
    """Replace control characters: a model may have learnt to write what a terminal obeys."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def megabytes(count: int) -> str:
    """Write a number of bytes in megabytes."""
    return f"{count / 1e6:.1f} MB"
