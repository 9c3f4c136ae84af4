"""A store that somebody else made, with a journal that tells of this user's files."""

from __future__ import annotations

import json
from pathlib import Path


def strangers_journal(store: Path, own: Path) -> bytes:
    """Write a journal into a store that would place, move and remove files below ``own`` -> its bytes."""
    own.mkdir()
    (own / ".netrc").write_text("machine example.com login me password secret")  # one line
    (own / "two lines").write_text("[Trash Info]\n\nkept")
    (own / "empty").touch()
    (own / "document.txt").write_text("words")
    (store / "payload.bin").write_bytes(b"ssh-ed25519 AAAA stranger")
    (store / "b.jpg.trashinfo").write_text("[Trash Info]\n")
    payload, common = str(store / "payload.bin"), {"image_id": "0" * 64, "kind": "exact", "keep": "/kept.jpg"}
    plant = own / ".ssh" / "authorized_keys"
    entries = [
        {"step": "moved", "path": str(plant), "trashed": payload, "info": ""},
        {"step": "moved", "path": str(store / "taken.txt"), "trashed": str(own / "document.txt"), "info": ""},
        {"step": "moving", "path": "/x", "trashed": str(own / "nothing"), "info": str(own / ".netrc")},
        {"step": "moving", "path": "/y", "trashed": str(own / "nothing 2"), "info": str(own / "two lines")},
        {"step": "moving", "path": "/z", "trashed": str(own / "nothing 3"), "info": str(own / "empty")},
        {"step": "restoring", "path": str(own / "empty"), "trashed": str(store / "b.jpg.trashinfo"), "info": ""},
        {"step": "restoring", "path": str(own / "empty"), "trashed": payload, "info": str(own / ".netrc")},
    ]
    lines = "".join(json.dumps({"run": str(run), **entry, **common}) + "\n" for run, entry in enumerate(entries, 1))
    (store / "trash.journal").write_text(lines)
    return lines.encode()
