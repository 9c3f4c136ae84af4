"""Verdicts as files: JSON lines, CSV, Parquet, and a page of HTML that needs nothing beside itself."""

from __future__ import annotations

import base64
import csv
import html
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qsplit.errors import NotFound, UsageError
from qsplit.qa.checks import Verdict

__all__ = ["FORMATS", "check_endings", "write"]

FORMATS = (".jsonl", ".csv", ".parquet", ".html")
SHOWN = 1000  # thumbnails of a page: some 10 KB each
_COLUMNS = [field.name for field in fields(Verdict)]
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
article { display: flex; gap: 1rem; padding: .8rem 0; border-top: 1px solid #8886; }
img, .none { width: 9rem; height: 9rem; object-fit: contain; flex: none; background: #8882; }
h2 { font-size: 1rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { padding: .1rem 1rem .1rem 0; text-align: left; }
.flagged { color: #b00020; font-weight: 600; } @media (prefers-color-scheme: dark) { .flagged { color: #ff8a80; } }
"""


def write(verdicts: Sequence[Verdict], path: Path, *, title: str, thumbnail: Callable[[str], bytes]) -> None:
    """Write verdicts in the format that the file's name ends in; ``thumbnail`` gives an image id's WebP.

    The file appears whole or not at all. Raises `UsageError` for another ending or a folder that cannot be written.
    """
    check_endings([path])
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.unlink(missing_ok=True)  # a link by this name would be written through
        match path.suffix:
            case ".jsonl":
                lines = (json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in verdicts)
                temporary.write_text("".join(lines), encoding="utf-8")
            case ".csv":
                _write_csv(verdicts, temporary)
            case ".parquet":
                _write_parquet(verdicts, temporary)
            case ".html":
                temporary.write_text(_page(verdicts, title, thumbnail), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}.") from error


def check_endings(paths: Iterable[Path]) -> None:
    """Raises `UsageError` for a file whose name does not tell a format."""
    for path in paths:
        if path.suffix not in FORMATS:
            raise UsageError(f"{path} ends in none of {', '.join(FORMATS)}.")


def _flat(verdict: Verdict) -> dict[str, object]:
    return asdict(verdict) | {"probabilities": json.dumps(verdict.probabilities, ensure_ascii=False)}


def _write_csv(verdicts: Sequence[Verdict], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, _COLUMNS)
        table.writeheader()
        table.writerows(map(_flat, verdicts))


def _write_parquet(verdicts: Sequence[Verdict], path: Path) -> None:
    texts, numbers, truths = pa.string(), pa.float64(), pa.bool_()
    kinds = {"probability": numbers, "mass": numbers, "flagged": truths, "exact": truths}
    schema = pa.schema([pa.field(name, kinds.get(name, texts)) for name in _COLUMNS])
    pq.write_table(pa.Table.from_pylist(list(map(_flat, verdicts)), schema=schema), path)


def _page(verdicts: Sequence[Verdict], title: str, thumbnail: Callable[[str], bytes]) -> str:
    """Pictures with something flagged first, else in the order given."""
    pictures = [list(group) for _, group in groupby(verdicts, key=lambda one: one.id)]
    pictures.sort(key=lambda group: not any(one.flagged for one in group))
    flagged = sum(any(one.flagged for one in group) for group in pictures)
    shown = "".join(_article(group, thumbnail if number < SHOWN else None) for number, group in enumerate(pictures))
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{name}</title><style>{_STYLE}</style><h1>{name}</h1>"
        f"<p>{flagged} of {len(pictures)} pictures flagged.</p>{shown}</html>\n"
    )


def _article(group: Sequence[Verdict], thumbnail: Callable[[str], bytes] | None) -> str:
    first = group[0]
    name = html.escape(first.path or first.id)
    rows = "".join(
        f"<tr{' class=flagged' if one.flagged else ''}><th>{html.escape(one.check)}<td>{html.escape(one.answer)}"
        f"<td>{one.probability:.2f}<td>{'flagged' if one.flagged else ''}</tr>"
        for one in group
    )
    return f"<article>{_picture(first.id, name, thumbnail)}<div><h2>{name}</h2><table>{rows}</table></div></article>"


def _picture(image_id: str, name: str, thumbnail: Callable[[str], bytes] | None) -> str:
    try:
        data = base64.b64encode(thumbnail(image_id)).decode() if thumbnail else ""
    except NotFound:
        data = ""
    return f'<img alt="{name}" src="data:image/webp;base64,{data}">' if data else '<div class="none"></div>'
