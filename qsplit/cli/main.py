"""The command line: parse, call, print.

Every command has ``--json``: one object, or one object a line, on stdout; everything else goes to stderr. Exit
codes: 0 done, 1 partly failed, 2 usage, 3 incompatible features, 4 corrupt store, 5 nothing found, 6 flagged.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qsplit import __version__
from qsplit.config import Settings
from qsplit.errors import NotFound, QsplitError, UsageError

if TYPE_CHECKING:
    from qsplit.album import Album
    from qsplit.duplicates.detector import Group, Kind, Member
    from qsplit.duplicates.trash import Moved
    from qsplit.indexing.pipeline import IndexReport
    from qsplit.maintenance.verify import Verified
    from qsplit.models.language.model import Sampling
    from qsplit.progress import Progress
    from qsplit.qa.ask import Reply
    from qsplit.search.engine import By, Sort
    from qsplit.search.filters import Filters
    from qsplit.store.feature_store import FeatureStore
    from qsplit.store.records import Skipped

__all__ = ["cli", "main"]

Command = TypeVar("Command", bound=Callable[..., Any])

PARTLY_FAILED = 1
USAGE = 2
CORRUPT = 4
NOTHING_FOUND = 5
FLAGGED = 6
INTERRUPTED = 130
_KINDS = ("exact", "pixels", "copy", "similar")
_SHOWN = 10  # lines of a list that may be as long as the album


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line and exit; a failure is printed as a sentence, or with ``--json`` as an object."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = cli.main(arguments, prog_name="qsplit", standalone_mode=False)
    except click.Abort:
        code = INTERRUPTED
    except click.ClickException as error:
        if "--json" not in arguments:
            error.show()
        code = _fail("UsageError", error.format_message(), "See --help.", arguments, shown=True, code=USAGE)
    except QsplitError as error:
        code = _fail(type(error).__name__, error.message, error.fix, arguments, shown=False, code=error.exit_code)
    sys.exit(code or 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="qsplit")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to stderr.")
def cli(verbose: bool) -> None:
    """Look once, ask for ever: image features that are computed once, kept, searched and asked about."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


def store_options(command: Command) -> Command:
    """Which store, and which state of it."""
    for option in (
        click.option("--at", "snapshot", default="", metavar="NAME", help="The store as it was at a snapshot."),
        click.option("--store", metavar="URI", help="The store [QSPLIT_STORE; default album.qsplit]."),
    ):
        command = option(command)
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def album_options(command: Command) -> Command:
    """The options of every command that opens an album, given to it as one `Album`."""

    @store_options
    @click.option("--model", metavar="MODEL", help="Folder or hub id [QSPLIT_MODEL; what the store records; bundled].")
    @click.option("--revision", default="", help="Revision of a hub id.")
    @click.option("--device", help="cpu, cuda, mps [QSPLIT_DEVICE; the best present].")
    @click.option("--dtype", help="bfloat16, float16 or float32 [QSPLIT_DTYPE; the checkpoint's own].")
    @click.option(
        "--language", metavar="URL", help="A vLLM server that answers, as http://host:8000/v1 [QSPLIT_LANGUAGE]."
    )
    @wraps(command)
    def run(*args: Any, revision: str, **kwargs: Any) -> Any:
        from qsplit.album import Album
        from qsplit.features.sizing import Resize

        names = ("min_pixels", "max_pixels", "resized_height", "resized_width")
        resize = Resize(**{name: kwargs.pop(name, None) for name in names})
        named = {name: kwargs.pop(name) for name in ("store", "model", "device", "dtype", "language")}
        settings = Settings.from_env().with_options(**named)
        album = Album(
            revision=revision,
            resize=resize,
            codec=kwargs.pop("codec", None) or "",
            compute=kwargs.pop("compute", None) or "",
            trust_encoder=kwargs.pop("trust_encoder", None) or "",
            snapshot=kwargs.pop("snapshot"),
            settings=settings,
        )
        return command(*args, album=album, **kwargs)

    return run  # type: ignore[return-value]  # click's decorators keep the type they are given


def resize_options(command: Command) -> Command:
    """The sizes of qwen-vl-utils' messages; other sizes make another encoder."""
    for name, what in (
        ("--resized-width", "Fixed width, with --resized-height."),
        ("--resized-height", "Fixed height, with --resized-width."),
        ("--max-pixels", "Most pixels (height x width) that a picture is resized to."),
        ("--min-pixels", "Fewest pixels that a picture is resized to."),
    ):
        command = click.option(name, type=click.IntRange(min=1), help=what)(command)
    return command


def enriching_options(command: Command) -> Command:
    """What the language half is to make of the pictures, beside their features."""
    for option in (
        click.option(
            "--caption-prompt",
            "caption_prompts",
            multiple=True,
            metavar="TEXT",
            help="Ask for captions by this, from now on; one for each, in any language [what the checkpoint says].",
        ),
        click.option("--captions", is_flag=True, help="Have pictures that lack them described, to find them by words."),
        click.option(
            "--semantic", is_flag=True, help="Make the vectors that texts are compared with, where they lack."
        ),
    ):
        command = option(command)
    return command


def sampling_options(command: Command) -> Command:
    """How answers are generated, given to the command as one `Sampling`."""

    @click.option(
        "--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="End the answer after N tokens [1024]."
    )
    @click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
    @click.option(
        "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Of the likeliest tokens [1]."
    )
    @click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated.")
    @click.option("--seed", type=int, help="Seed of the sampling.")
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        from qsplit.models.language.model import Sampling

        names = ("max_new_tokens", "temperature", "top_p", "stop", "seed")
        return command(*args, sampling=Sampling(**{name: kwargs.pop(name) for name in names}), **kwargs)

    return run  # type: ignore[return-value]  # click's decorators keep the type they are given


def filter_options(command: Command) -> Command:
    """What matches must fulfil, given to the command as one `Filters`."""

    @click.option("--since", default="", metavar="DATE", help="Taken in or after it: 2024, 2024-05 or 2024-05-31.")
    @click.option("--until", default="", metavar="DATE", help="Taken in or before it.")
    @click.option("--camera", default="", metavar="NAME", help="Taken with it; a part of its name is enough.")
    @click.option("--near", default="", metavar="LAT,LON,KM", help="Taken no further than that from a place.")
    @click.option("--min-size", default="", metavar="SIZE", help="At least 1920x1080, in either direction, or 2MP.")
    @click.option("--path", default="", metavar="PATTERN", help="In a folder, or a glob: 'holiday/*.jpg'.")
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        from qsplit.search.filters import Filters

        names = ("since", "until", "camera", "near", "min_size", "path")
        return command(*args, where=Filters.read(**{name: kwargs.pop(name) for name in names}), **kwargs)

    return run  # type: ignore[return-value]  # click's decorators keep the type they are given


@cli.command()
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
def index(
    album: Album, paths: tuple[str, ...], as_json: bool, address: str, workers: int, videos: bool, **options: Any
) -> int:
    """Encode what is new in files, folders and globs. Resumable; what could not be read is tried again next time.

    With --ray after the paths, they may also be s3:// addresses, WebDataset tars and Parquet files.
    """
    line = _ProgressLine()
    if address:
        report = _index_on_ray(album, paths, line, address=address, workers=workers, videos=videos, **options)
    else:
        report = album.index(*paths, videos=videos, on_progress=line.show, **options)
    line.clear()
    code = _print_report(report, as_json=as_json)
    if report.found == 0:
        click.echo("There is no picture in these paths.", err=True)
        return NOTHING_FOUND
    return code


def _index_on_ray(
    album: Album, paths: tuple[str, ...], line: _ProgressLine, *, semantic: bool, captions: bool, **options: Any
) -> IndexReport:
    """As `Album.index`; what the language half makes of the pictures is made here."""
    try:
        from qsplit.cluster import index as cluster
    except ImportError as error:
        raise UsageError(f"Indexing on Ray needs {error.name}.", fix="pip install 'qsplit[cluster]'") from error
    if Path(options["address"]).exists():
        raise UsageError(
            f"{options['address']} is no address of Ray.", fix="Write the paths first: `qsplit index PATH --ray`."
        )
    caption_prompts = options.pop("caption_prompts")
    with redirect_stdout(sys.stderr):  # Ray says there whose process died
        report = cluster.index(album, paths, on_progress=line.show, **options)
    if not (semantic or captions or caption_prompts):
        return report
    made = album.refresh(semantic=semantic, captions=captions, caption_prompts=caption_prompts, on_progress=line.show)
    return replace(report, semantic=made.semantic, captions=made.captions, unsearchable=made.unsearchable)


@cli.command()
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
        options["on_text"] = lambda text: click.echo(_printable(text), nl=False)
    images = [image, *more]
    if not interactive and transcript is None:
        for reply in album.ask_each(images, questions, **options):
            _print_reply(reply, as_json=as_json, streamed=streams)
        return
    kept = Transcript(transcript)
    kept.check([album.locate(one).image.image_id for one in images])
    for question in _typed(questions) if interactive else questions:
        for reply in album.ask_each(images, question, history=kept.history, **options):
            kept.append(reply)
            _print_reply(reply, as_json=as_json, streamed=streams)


@cli.command()
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
) -> int:
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
            _print_json(one)
        elif one.flagged or everything:
            mark = "FLAGGED  " if one.flagged else ""
            click.echo(f"{mark}{one.path or one.id}  {one.check}: {one.answer} ({one.probability:.2f})")
    for path in outs:
        write(verdicts, path, title=f"{read.name}: {album.uri}", thumbnail=album.store.thumbnail)
    flagged = {one.id for one in verdicts if one.flagged}
    checked = {one.id for one in verdicts}
    click.echo(f"{len(checked)} pictures checked, {len(flagged)} flagged, {len(skipped)} skipped", err=True)
    _print_skipped(skipped)
    if flagged:
        return FLAGGED
    return PARTLY_FAILED if skipped else 0


@cli.command()
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
) -> int:
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
        _print_json(match) if as_json else click.echo(f"{match.score:.4f}  {match.id[:12]}  {match.path}")
    if found.after and not as_json:
        click.echo(f"There are more: --after {found.after}", err=True)
    return 0


@cli.command()
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
    store: str | None,
    snapshot: str,
    kinds: tuple[Kind, ...],
    similar: bool,
    mirrored: bool,
    keep: str,
    protect: tuple[str, ...],
    trash: bool,
    undo: bool,
    report: Path | None,
    as_json: bool,
    **said: tuple[str, str] | None,
) -> int:
    """Show files that are the same picture: exact (bytes), pixels (other metadata), copy (re-encoded, cropped, turned,
    written on ...), and with --similar shots that are no copies. Without --trash no file is touched.

    --trash moves exact files, and pixels files that hold nothing more than the kept one (frames, transparency, colour
    profile, sound ...); copies only with --kind copy. RAW files and Live Photos are never moved.
    """
    from qsplit.duplicates.cleanup import bring_back, move_to_trash
    from qsplit.duplicates.detector import KINDS, find_duplicates, keep_apart, let_together
    from qsplit.duplicates.html_report import write_page
    from qsplit.duplicates.keep_rules import KeepOrder
    from qsplit.duplicates.move_rules import MOVED_KINDS
    from qsplit.media.images import Limits
    from qsplit.store.lookup import locate

    if trash + undo + sum(map(bool, said.values())) > 1:
        raise click.UsageError("--trash, --undo, --not and --unsay are done one at a time.")
    opened, limits = _store(store, snapshot), Limits.from_settings(Settings.from_env())
    if undo:
        return _print_moved(bring_back(opened), as_json=as_json)
    for decide, pair in ((keep_apart, said["apart"]), (let_together, said["together"])):
        if pair:
            decide(opened, *(locate(opened, name, limits).image for name in pair))
            return 0
    order = KeepOrder(tuple(keep.split(",")) if keep else (), protect)
    wanted = (*(kinds or KINDS[:3]), *(("similar",) if similar else ()))
    groups = find_duplicates(opened, kinds=wanted, moved=kinds or MOVED_KINDS, order=order, mirrored=mirrored)
    if report:
        write_page(groups, report, opened, limits, title=f"Duplicates in {opened.uri}")
    if trash:
        return _print_moved(move_to_trash(opened, groups), as_json=as_json)
    for group in groups:
        _print_group(group, as_json=as_json)
    return 0 if groups else NOTHING_FOUND


@cli.command()
@store_options
@json_option
def status(store: str | None, snapshot: str, as_json: bool) -> None:
    """Show what the store holds."""
    from qsplit.maintenance.status import read_status

    found = read_status(_store(store, snapshot))
    if as_json:
        _print_json(found)
        return
    click.echo(f"{found.store} (schema {found.schema}, model {found.model or 'none yet'})")
    click.echo(f"  {found.images} images in {found.files} files, {found.missing} missing")
    click.echo(f"  {found.features} features, {found.stale} images stale; {_megabytes(found.bytes['total'])} on disk")
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


@cli.command()
@click.option("--drop-old", is_flag=True, help="Then remove what other encoders made of the same pictures.")
@click.option("--codec", metavar="NAME", help="As for index.")
@click.option("--compute", metavar="NAME", help="As for index.")
@enriching_options
@album_options
@resize_options
@json_option
def refresh(album: Album, as_json: bool, **options: Any) -> int:
    """Encode the known pictures that the current encoder has not seen: after a change of model, dtype or size.

    With --semantic or --captions, also make what texts find them by; what there is of the current model stays.
    """
    line = _ProgressLine()
    report = album.refresh(on_progress=line.show, **options)
    line.clear()
    return _print_report(report, as_json=as_json)


@cli.command()
@click.option("--drift", type=click.IntRange(min=0), default=0, metavar="N", help="Encode N pictures again, compare.")
@album_options
@json_option
def verify(album: Album, drift: int, as_json: bool) -> int:
    """Read everything that the store holds and compare it with what was put in. Changes nothing.

    Exits with 4 if anything is damaged, with 1 if nothing is and the model gave NaN or infinity for some pictures.
    """
    found = album.verify(drift=drift)
    if as_json:
        _print_json(found)
    else:
        _print_verified(found)
    if not found.sound:
        return CORRUPT
    return PARTLY_FAILED if found.drift and found.drift.failed else 0


@cli.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@album_options
@json_option
def forget(album: Album, images: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Remove pictures from the store, with all that was made of them. The files themselves are not touched."""
    gone = album.forget(images, dry_run=dry_run)
    if as_json:
        _print_json(gone)
        return
    click.echo(
        f"{gone.images} images in {gone.files} files, {gone.features} features {'would go' if dry_run else 'gone'}: "
        f"{_megabytes(gone.before)} -> {_megabytes(gone.after)}"
    )


@cli.command()
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
        _print_json(done)
        return
    click.echo(
        f"{len(done.orphans)} orphans, {done.fragments} fragments {'would be ' if dry_run else ''}rewritten: "
        f"{_megabytes(done.before)} -> {_megabytes(done.after)}"
    )


@cli.command()
@click.argument("name", required=False)
@click.option("--restore", "action", flag_value="restore", help="Make the store what it was at NAME.")
@click.option("--delete", "action", flag_value="delete", help="Let go of NAME; `qsplit compact` gives its room back.")
@album_options
@json_option
def snapshot(album: Album, name: str | None, action: str | None, as_json: bool) -> None:
    """Keep the store as it is now under NAME; without NAME, list the snapshots. Commands read one with --at."""
    if name is None and action:
        raise click.UsageError(f"Give the NAME of the snapshot to {action}.")
    if name is not None:
        {"restore": album.restore, "delete": album.drop_snapshot, None: album.snapshot}[action](name)
    for kept, made in album.snapshots().items():
        _print_json({"name": kept, "made_at": made}) if as_json else click.echo(f"{made:%Y-%m-%d %H:%M:%S}  {kept}")


@cli.command()
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
def export(album: Album, out: Path, images: tuple[str, ...], form: Any, as_json: bool) -> int:
    """Write the features of some pictures, or of all, into the folder OUT: a file for each, named by its id."""
    from qsplit.store.records import Skipped

    written, skipped = 0, []
    for one in album.export(out, images, form=form):
        if isinstance(one, Skipped):
            skipped.append(one)
            continue
        written += 1
        _print_json(one) if as_json else click.echo(f"{one.file}  {one.tokens} tokens  {one.path or ''}")
    click.echo(f"{written} pictures written, {len(skipped)} skipped", err=True)
    _print_skipped(skipped)
    return PARTLY_FAILED if skipped else 0


@cli.command()
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
        _print_json(done)
        return
    for one in done.halves:
        click.echo(
            f"{one.half:9} {_megabytes(one.bytes)} of {_megabytes(done.bytes)}, {one.parameters:,} parameters"
            f"{'' if one.written else ', there already'}: {one.folder}"
        )


@cli.command()
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
        lambda served: _print_json(served) if as_json else click.echo(f"Serving {served.store} at {served.url}"),
    )


@cli.command()
@album_options
@json_option
def doctor(album: Album, as_json: bool) -> int:
    """Show what is installed, which devices and checkpoint there are, and what would fail."""
    from qsplit.cli.doctor import diagnose

    checks = diagnose(album)
    for check in checks:
        if as_json:
            _print_json(check)
        else:
            click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.found}")
            if check.fix:
                click.echo(f"      {check.fix}")
    return 0 if all(check.ok for check in checks) else PARTLY_FAILED


@cli.command()
@click.option("--folder", metavar="FOLDER", help="Keep pictures and store here [a temporary folder].")
@json_option
def demo(folder: str | None, as_json: bool) -> int:
    """Index the sample album, find copies and neighbours, ask in new processes, and compare with the unsplit model."""
    from qsplit.mini.demo import run

    report = run(folder, say=lambda text: click.echo(text, err=as_json))
    if as_json:
        _print_json(report)
    return 0 if report.equal else PARTLY_FAILED


def _print_report(report: IndexReport, *, as_json: bool) -> int:
    if as_json:
        _print_json(report)
    else:
        click.echo(
            f"{report.found} found: {report.encoded} encoded, {report.reused} reused, {report.unchanged} unchanged, "
            f"{report.missing} missing, {len(report.unreadable)} unreadable, in {report.seconds:.1f} s"
        )
        if report.semantic or report.captions:
            click.echo(f"{report.semantic} semantic vectors and {report.captions} captions made")
        _print_skipped([*report.unreadable, *report.unsearchable])
    return PARTLY_FAILED if report.unreadable or report.unsearchable else 0


def _print_skipped(skipped: Sequence[Skipped]) -> None:
    for one in skipped:
        click.echo(f"  {one.path}: {one.reason}", err=True)


def _print_verified(found: Verified) -> None:
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


def _print_group(group: Group, *, as_json: bool) -> None:
    if as_json:
        _print_json(group)
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


def _print_moved(moved: Iterable[Moved], *, as_json: bool) -> int:
    states = []
    for one in moved:
        states.append(one.state)
        if as_json:
            _print_json(one)
        else:
            click.echo(f"{one.state}: {one.path}{f': {one.reason}' if one.reason else ''}")
    if not states:
        click.echo("There is nothing to move.", err=True)
        return NOTHING_FOUND
    return PARTLY_FAILED if "left" in states else 0


class _ProgressLine:
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


def _store(store: str | None, snapshot: str) -> FeatureStore:
    """The store alone: what needs no model starts without importing any."""
    from qsplit.store.feature_store import FeatureStore

    return FeatureStore(Settings.from_env().with_options(store=store).store, snapshot=snapshot)


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


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


def _print_reply(reply: Reply, *, as_json: bool, streamed: bool) -> None:
    if as_json:
        _print_json(reply)
        return
    click.echo("" if streamed else _printable(reply.answer))
    if not reply.exact:
        why = "were kept with loss, made on another kind of device or with another attention, are of another dtype"
        click.echo(f"(not exact: the features {why}, or vouched for)", err=True)


def _print_json(result: Any) -> None:
    click.echo(json.dumps(result if isinstance(result, dict) else asdict(result), ensure_ascii=False, default=str))


def _fail(kind: str, message: str, fix: str, arguments: Sequence[str], *, shown: bool, code: int) -> int:
    if "--json" in arguments:
        _print_json({"error": {"type": kind, "message": message, "fix": fix}})
    elif not shown:
        click.echo(f"Error: {message}", err=True)
        if fix:
            click.echo(f"  {fix}", err=True)
    return code


def _printable(text: str) -> str:
    """Text without control characters: a model may have learnt to write what a terminal obeys."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
