"""What comes with the package, so that the demo, the documentation and the tests run end to end with no network.

    checkpoint/   a complete Qwen2-VL checkpoint of about a million parameters; read its ``README.md``
    photos/       photographs in the public domain or under CC0; ``CREDITS.md`` names each author
    policies/     policies that ``qsplit check NAME`` takes by their names

Wheels are installed unpacked, so all of it is plain files. Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["checkpoint", "photos", "policies", "policy"]

_HERE = Path(__file__).parent


def checkpoint() -> Path:
    """Return the folder of the bundled checkpoint, which has the files and names of the checkpoints people use.

    >>> (checkpoint() / "config.json").name
    'config.json'
    """
    return _HERE / "checkpoint"


def photos() -> list[Path]:
    """Return the sorted paths of the photographs, all JPEG.

    >>> len(photos()) >= 24
    True
    """
    return sorted((_HERE / "photos").glob("*.jpg"))


def policies() -> list[str]:
    """Return the names of the policies.

    >>> policies()
    ['album-tags', 'moderation']
    """
    return sorted(file.stem for file in (_HERE / "policies").glob("*.toml"))


def policy(name: str) -> Path:
    """Return the file of a policy by its name; it need not exist."""
    return _HERE / "policies" / f"{name}.toml"
