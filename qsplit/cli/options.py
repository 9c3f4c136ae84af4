"""Options that several commands share, and what each command is given for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from qsplit.config import Settings

__all__ = [
    "album_options",
    "enriching_options",
    "filter_options",
    "json_option",
    "resize_options",
    "sampling_options",
    "store_options",
]

Command = TypeVar("Command", bound=Callable[..., Any])


def store_options(command: Command) -> Command:
    """Which store, and which state of it: all that a command which needs no model is told, as one `Album`."""

    @_place_options
    @wraps(command)
    def run(*args: Any, store: str | None, snapshot: str, **kwargs: Any) -> Any:
        from qsplit.album import Album

        return command(
            *args, album=Album(snapshot=snapshot, settings=Settings.from_env().with_options(store=store)), **kwargs
        )

    return run  # type: ignore[return-value]  # click's decorators keep the type they are given


def _place_options(command: Command) -> Command:
    for option in (
        click.option("--at", "snapshot", default="", metavar="NAME", help="The store as it was at a snapshot."),
        click.option("--store", metavar="URI", help="The store [QSPLIT_STORE; default album.qsplit]."),
    ):
        command = option(command)
    return command


def json_option(command: Command) -> Command:
    """Whether results are printed as JSON."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")(command)


def album_options(command: Command) -> Command:
    """The options of every command that opens an album, given to it as one `Album`."""

    @_place_options
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
