"""Render the contracts of this folder from the code: ``python schemas/generate.py``.

``--check`` writes nothing and exits with 1, naming each file that is not what the code says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from qsplit.album import Album
from qsplit.cli.doctor import Check
from qsplit.duplicates.detector import Group
from qsplit.duplicates.trash import Moved
from qsplit.features.features import LAYOUT, Encoder, Provenance
from qsplit.features.layouts import LAYOUTS
from qsplit.indexing.pipeline import IndexReport
from qsplit.integrations.export import Written
from qsplit.maintenance.garbage import Compacted, Forgotten
from qsplit.maintenance.status import Status
from qsplit.maintenance.verify import Verified
from qsplit.mini.demo import DemoReport
from qsplit.models.splitting import Split
from qsplit.qa.ask import Reply
from qsplit.qa.checks import Verdict
from qsplit.search.engine import Match
from qsplit.server.app import create_app
from qsplit.server.run import Served
from qsplit.store import schema

HERE = Path(__file__).parent
# sha256 of the contracts of before, which stores that exist were made by and which never change again.
EARLIER = {
    "store.v1.json": "ac43993b5e07604c92980182e596b20538282574814e782dab7b0b40b8f15718",
    "store.v2.json": "0bde40f345687f3c9f1171eb7b916f7382a4fcb2c90e01e4f70c91c7e5d7aeaa",
    "store.v3.json": "1250c8bd90b1a2148d94fc619d99c4993212b30fd8dadaca8489dfe6f4c438db",
    "store.v4.json": "b290688c06c88f958a521e57d64da2f971878993ae1df335f64982abd5dbd5bd",
}
WIDTH = 1536  # of the vectors table as rendered; a real one has the width of its encoder


def contracts() -> dict[str, dict[str, Any]]:
    """File name -> content, of every generated file here."""
    return {
        "store.v5.json": store(),
        "encoder.v1.json": encoder(),
        "cli.v1.json": cli(),
        "openapi.v1.json": openapi(),
    }


def store() -> dict[str, Any]:
    tables = {
        "files": schema.files_schema(),
        "images": schema.images_schema(),
        "features": schema.features_schema(),
        "vectors-<first 12 digits of the encoder id>": schema.vectors_schema(WIDTH),
        "semantics": schema.semantics_schema(),
        "checks": schema.checks_schema(),
        "landmarks": schema.landmarks_schema(),
        "pairs": schema.pairs_schema(),
        "compared": schema.compared_schema(),
        "decisions": schema.decisions_schema(),
    }
    return {"version": schema.VERSION, "tables": {name: schema.render(made) for name, made in tables.items()}}


def encoder() -> dict[str, Any]:
    example = Encoder("a" * 64, "b" * 64, "bfloat16", width=WIDTH, levels=0, merge_size=2)
    return {
        "layout": LAYOUT,
        "layouts": LAYOUTS,
        "identity": shape(Encoder),
        "provenance": shape(Provenance),
        "id": "sha256 of the identity as JSON: keys sorted, no spaces, compute left out where it is plain",
        "example": {"identity": asdict(example), "id": example.id},
    }


def cli() -> dict[str, Any]:
    return {
        "version": 1,
        "one object": {
            "index": shape(IndexReport),
            "refresh": shape(IndexReport),
            "status": shape(Status),
            "verify": shape(Verified),
            "forget": shape(Forgotten),
            "compact": shape(Compacted),
            "split": shape(Split),
            "demo": shape(DemoReport),
            "serve": shape(Served),
        },
        "one object a line": {
            "ask": shape(Reply),
            "check": shape(Verdict),
            "search": shape(Match),
            "duplicates": shape(Group),
            "export": shape(Written),
            "duplicates --trash, --undo": shape(Moved),
            "snapshot": {"name": "str", "made_at": "datetime"},
            "doctor": shape(Check),
        },
        "any failure": {"error": {"type": "str", "message": "str", "fix": "str"}},
        "exit codes": {
            "0": "done",
            "1": "partly failed",
            "2": "usage",
            "3": "incompatible features",
            "4": "corrupt store",
            "5": "nothing found",
            "6": "something was flagged",
        },
    }


def openapi() -> dict[str, Any]:
    """The service's routes; the version is that of the contract, not of the package."""
    spec = create_app(Album("album.qsplit")).openapi()
    return {**spec, "info": {**spec["info"], "version": "1"}}


def shape(kind: type[Any]) -> dict[str, Any]:
    """Field -> type of a dataclass, dataclasses inside it spelled out."""
    hints = get_type_hints(kind)
    return {field.name: _type(hints[field.name]) for field in fields(kind)}


def _type(hint: Any) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return shape(hint)
    inner = [part for part in get_args(hint) if is_dataclass(part)]
    if inner:  # list[X] or tuple[X, ...]
        return [shape(inner[0])]  # type: ignore[arg-type]  # only classes are found in annotations
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, content in contracts().items():
        text = json.dumps(content, indent=2) + "\n"
        path = HERE / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.write_text(text)
    for name, digest in EARLIER.items():
        path = HERE / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            stale.append(name)
    if check and stale:
        print(
            f"{', '.join(stale)} differ from the code. Run `make schemas` and review the difference.", file=sys.stderr
        )
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
