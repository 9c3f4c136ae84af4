"""A complete Qwen2-VL checkpoint of about a million parameters, shipped with the package.

It has the files, the tensor names and the chat format of the checkpoints people use, so that the demo, the
documentation and the tests run end to end with no network. It is no model of record: read its ``README.md``.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

__all__ = ["path"]


def path() -> Path:
    """Return the folder of the bundled checkpoint; loads neither torch nor transformers.

    >>> (path() / "config.json").name
    'config.json'
    """
    return Path(str(resources.files(__name__) / "checkpoint"))
