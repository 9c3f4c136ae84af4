"""Commands that put pictures into an album and find them there."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsplit.cli.exit_codes import ExitCode
from qsplit.cli.options import (
    album_options,
    enriching_options,
    filter_options,
    json_option,
    resize_options,
    sampling_options,
    store_options,
)
from qsplit.cli.output import (
    ProgressLine,
    print_group,
    print_json,
    print_moved,
    print_reply,
    print_report,
    print_skipped,
    printable,
)
from qsplit.errors import NotFound, UsageError

if TYPE_CHECKING:
    from qsplit.album import Album
    from qsplit.duplicates.detector import Kind
    from qsplit.models.language.model import Sampling
    from qsplit.search.engine import By, Sort
    from qsplit.search.filters import Filters

__all__ = ["COMMANDS"]

_KINDS = ("exact", "pixels", "copy", "similar")


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@album_options
@resize_options
@click.option("--codec", metavar="NAME", help="Keep features raw, as planes-zstd (no loss) or as int8 (lossy) [raw].")
@click.option(
    "--compute", metavar="NAME", help="Encode plain, or packed: faster, rounded otherwise, not exact [plain]."
)
@click.option("--videos", is_flag=True, help="Take the videos in folders too; one that is named is always taken.")
@enriching_options
@click.option(
    "--ray",
    "address",
    is_flag=False,
    flag_value="local",
    default="",
    metavar="[ADDRESS]",
    help="Encode on a Ray cluster: this machine's cores, or the cluster at an address ('auto': this node's).",
)
@click.option("--workers", type=click.IntRange(min=0), default=0, metavar="N", help="Encoders at once, with --ray.")
@json_option
def index(album: Album, paths: tuple[str, ...], as_json: bool, address: str, workers: int, **options: Any) -> ExitCode:
    """Encode what is new in files, folders and globs. Resumable; what could not be read is tried again next time.

    With --ray after the paths, they may also be s3:// addresses, WebDataset tars and Parquet files.
    """
    if address and Path(address).exists():
        raise UsageError(f"{address} is no address of Ray.", fix="Write the paths first: `qsplit index PATH --ray`.")
    line = ProgressLine()
    with redirect_stdout(sys.stderr):  # Ray says there whose process died
        report = album.index(*paths, ray=address or None, workers=workers, on_progress=line.show, **options)
    line.clear()
    code = print_report(report, as_json=as_json)
    if report.found == 0:
        click.echo("There is no picture in these paths.", err=True)
        return ExitCode.NOTHING_FOUND
    return code


@click.command()
@click.option("--drop-old", is_flag=True, help="Then remove what other encoders made of the same pictures.")
@click.option("--codec", metavar="NAME", help="As for index.")
@click.option("--compute", metavar="NAME", help="As for index.")
@enriching_options
@album_options
@resize_options
@json_option
def refresh(album: Album, as_json: bool, **options: Any) -> ExitCode:
    """Encode the known pictures that the current encoder has not seen: after a change of model, dtype or size.

    With --semantic or --captions, also make what texts find them by; what there is of the current model stays.
    """
    line = ProgressLine()
    report = album.refresh(on_progress=line.show, **options)
    line.clear()
    return print_report(report, as_json=as_json)


@click.command()
@click.argument("image")
@click.argument("questions", nargs=-1, metavar="QUESTION...")
@album_options
@resize_options
@click.option("--image", "more", multiple=True, metavar="IMAGE", help="Another picture of the same question.")
@click.option("-i", "--interactive", is_flag=True, help="Go on asking, each answer remembered.")
@click.option(
    "--transcript",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep the conversation here, a reply a line, and go on with what is there.",
)
@click.option("--system", default="", help="System prompt [the chat template's own].")
@sampling_options
@click.option("--exact", is_flag=True, help="Compute each question by itself, as the unsplit model does.")
@click.option("--trust-encoder", metavar="ID", help="Vouch for features of this encoder; answers are then not exact.")
@json_option
def ask(
    album: Album,
    image: str,
    questions: tuple[str, ...],
    more: tuple[str, ...],
    interactive: bool,
    transcript: Path | None,
    as_json: bool,
    system: str,
    sampling: Sampling,
    exact: bool,
) -> None:
    """Answer questions about a picture from its stored features. IMAGE is a path or an id prefix."""
    from qsplit.qa.transcript import Transcript

    if not questions and not interactive:
        raise click.UsageError("Give a QUESTION, or -i for a chat.")
    options: dict[str, Any] = {"system": system, "sampling": sampling, "exact": exact}
    streams = not as_json and sys.stdout.isatty()
    if streams:
        options["on_text"] = lambda text: click.echo(printable(text), nl=False)
    images = [image, *more]
    if not interactive and transcript is None:
        for reply in album.ask_each(images, questions, **options):
            print_reply(reply, as_json=as_json, streamed=streams)
        return
    kept = Transcript(transcript)
    kept.check([album.locate(one).image.image_id for one in images])
    for question in _typed(questions) if interactive else questions:
        for reply in album.ask_each(images, question, history=kept.history, **options):
            kept.append(reply)
            print_reply(reply, as_json=as_json, streamed=streams)


def _typed(questions: Iterable[str]) -> Iterable[str]:
    """The questions of the command line, then those that are typed until an empty line or the end of input."""
    yield from questions
    while True:
        try:
            question = click.prompt("", prompt_suffix="> ", default="", show_default=False, err=True).strip()
        except click.Abort:
            return
        if not question:
            return
        yield question


@click.command()
@click.argument("policy")
@click.argument("images", nargs=-1, metavar="[IMAGE...]")
@album_options
@click.option(
    "--out",
    "outs",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write the verdicts: .jsonl, .csv, .parquet or .html; may be repeated.",
)
@click.option("--all", "everything", is_flag=True, help="Print what is not flagged, too.")
@click.option("--exact", is_flag=True, help="As for ask.")
@json_option
def check(
    album: Album,
    policy: str,
    images: tuple[str, ...],
    outs: tuple[Path, ...],
    everything: bool,
    exact: bool,
    as_json: bool,
) -> ExitCode:
    """Ask every question of POLICY (a TOML file, moderation or album-tags) about some pictures, or all. Resumable.

    Exits with 6 if anything was flagged, with 1 if nothing was and pictures had to be skipped.
    """
    from qsplit.qa.check_reports import check_endings, write
    from qsplit.qa.policy import read_policy
    from qsplit.store.records import Skipped

    check_endings(outs)
    read = read_policy(policy)
    everything = everything or not any(one.flag for one in read.checks)
    verdicts, skipped = [], []
    for one in album.check(read, images, exact=exact):
        if isinstance(one, Skipped):
            skipped.append(one)
            continue
        verdicts.append(one)
        if as_json:
            print_json(one)
        elif one.flagged or everything:
            mark = "FLAGGED  " if one.flagged else ""
            click.echo(f"{mark}{one.path or one.id}  {one.check}: {one.answer} ({one.probability:.2f})")
    for path in outs:
        write(verdicts, path, title=f"{read.name}: {album.uri}", thumbnail=album.pictures.thumbnail)
    flagged = {one.id for one in verdicts if one.flagged}
    checked = {one.id for one in verdicts}
    click.echo(f"{len(checked)} pictures checked, {len(flagged)} flagged, {len(skipped)} skipped", err=True)
    print_skipped(skipped)
    if flagged:
        return ExitCode.FLAGGED
    return ExitCode.PARTLY_FAILED if skipped else ExitCode.DONE


@click.command()
@click.argument("text", nargs=-1, metavar="[TEXT...]")
@click.option(
    "--like", multiple=True, metavar="IMAGE", help="A picture of the album (path or id prefix) or any file; repeatable."
)
@filter_options
@click.option(
    "--sort",
    type=click.Choice(["relevance", "date"]),
    default="relevance",
    show_default=True,
    help="Best or newest first.",
)
@click.option("--words", "by", flag_value="words", help="By the words of captions alone.")
@click.option("--hybrid", "by", flag_value="hybrid", help="By meaning and by the words of captions, fused.")
@click.option(
    "--rerank",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Ask the N best whether they are what TEXT says, and score them by that.",
)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Matches of a page.")
@click.option("--after", default="", metavar="CURSOR", help="The page behind the one that ended with this.")
@click.option("--all", "everything", is_flag=True, help="The nearest, also where they are no good match.")
@album_options
@json_option
def search(
    album: Album,
    text: tuple[str, ...],
    like: tuple[str, ...],
    where: Filters,
    sort: Sort,
    by: By | None,
    rerank: int,
    limit: int,
    after: str,
    everything: bool,
    as_json: bool,
) -> ExitCode:
    """Find pictures by what TEXT says, by a picture, or by both, best first.

    TEXT may have several terms between spaced + and -: texts, pictures and ids, with weights, as in
    '2:red boat + ./pool.jpg - people'. What stands in double quotes is text. Texts are compared
    with what `qsplit refresh --semantic` made.
    """
    found = album.search(
        " ".join(text),
        like=like,
        where=where,
        sort=sort,
        by=by or "meaning",
        rerank=rerank,
        limit=limit,
        after=after,
        everything=everything,
    )
    if not found and found.is_cut:
        raise NotFound("There is no good match.", fix="`--all` shows the nearest anyway.")
    if not found:
        raise NotFound("There is no further page." if after else "Nothing was found that fulfils the conditions.")
    for match in found:
        print_json(match) if as_json else click.echo(f"{match.score:.4f}  {match.id[:12]}  {match.path}")
    if found.after and not as_json:
        click.echo(f"There are more: --after {found.after}", err=True)
    return ExitCode.DONE


@click.command()
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(_KINDS),
    help="Only these; may be repeated. --trash moves copies only if copy is among them.",
)
@click.option("--similar", is_flag=True, help="Also shots of one burst or scene, which --trash never moves.")
@click.option("--mirrored", is_flag=True, help="Also copies in a mirror.")
@click.option(
    "--keep",
    default="",
    metavar="RULE,...",
    help="whole, resolution, exif, format, bytes, oldest, path, in:GLOB, not:GLOB.",
)
@click.option(
    "--protect", multiple=True, metavar="FOLDER", help="Files in it are kept and never moved; may be repeated."
)
@click.option("--trash", is_flag=True, help="Move exact and pixels files but the kept one to the system's trash.")
@click.option("--undo", is_flag=True, help="Bring back what the last --trash moved.")
@click.option("--not", "apart", nargs=2, metavar="A B", help="Remember that two pictures are no duplicates.")
@click.option("--unsay", "together", nargs=2, metavar="A B", help="Forget that --not was said of two pictures.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page .html, side by side.",
)
@store_options
@json_option
def duplicates(
    album: Album,
    kinds: tuple[Kind, ...],
    similar: bool,
    mirrored: bool,
    keep: str,
    protect: tuple[str, ...],
    trash: bool,
    undo: bool,
    report: Path | None,
    as_json: bool,
    apart: tuple[str, str] | None,
    together: tuple[str, str] | None,
) -> ExitCode:
    """Show files that are the same picture: exact (bytes), pixels (other metadata), copy (re-encoded, cropped, turned,
    written on ...), and with --similar shots that are no copies. Without --trash no file is touched.

    --trash moves exact files, and pixels files that hold nothing more than the kept one (frames, transparency, colour
    profile, sound ...); copies only with --kind copy. RAW files and Live Photos are never moved.
    """
    if sum(map(bool, (trash, undo, apart, together))) > 1:
        raise click.UsageError("--trash, --undo, --not and --unsay are done one at a time.")
    if undo:
        return print_moved(album.trash.bring_back_each(), as_json=as_json)
    if apart:
        album.decisions.keep_apart(*apart)
        return ExitCode.DONE
    if together:
        album.decisions.let_together(*together)
        return ExitCode.DONE
    rules = tuple(keep.split(",")) if keep else ()
    groups = album.duplicates(kinds, similar=similar, mirrored=mirrored, keep=rules, protect=protect)
    if report:
        album.write_duplicates(groups, report)
    if trash:
        return print_moved(album.trash.move_each(groups), as_json=as_json)
    for group in groups:
        print_group(group, as_json=as_json)
    return ExitCode.DONE if groups else ExitCode.NOTHING_FOUND


COMMANDS = (index, refresh, ask, check, search, duplicates)
