"""What a service is started with."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from qsplit.errors import UsageError

__all__ = ["LOCAL", "Role", "ServeOptions"]

LOCAL = "localhost"

Role = Literal["all", "vision", "language"]


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How a service is reached, by whom, and what bounds it.

    ``keys`` may do everything, ``read_only_keys`` change nothing; without either only this machine is served. ``hosts``
    are names that the service is known by beside ``localhost`` and numeric addresses, ``origins`` the other sites whose
    pages may call it. ``folders`` are what jobs index; ``uploads`` is the folder of pictures that were sent in, beside
    the store where it is empty. ``role`` vision or language leaves the other half of the model out of the process.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    role: Role = "all"
    keys: tuple[str, ...] = ()
    read_only_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    uploads: str = ""
    remote_images: bool = False
    queue: int = 64  # requests that wait for the language half, before others are turned away
    deadline_s: float = 120.0  # seconds until an answer is cut where it is, waiting included
    max_answer_tokens: int | None = None  # of one answer, beside what the model's context leaves
    max_upload_bytes: int = 25_000_000  # of one picture
    max_pixels: int = 50_000_000  # of one picture, width x height
    log_json: bool = False

    def __post_init__(self) -> None:
        if not self.has_keys and not _is_loopback(self.host):
            raise UsageError(
                f"{self.host} can be reached from other machines, and no key is set.",
                fix="Set a key with QSPLIT_KEYS, or serve 127.0.0.1.",
            )

    @property
    def has_keys(self) -> bool:
        """Whether a request has to name a key."""
        return bool(self.keys or self.read_only_keys)


def _is_loopback(host: str) -> bool:
    if host == LOCAL:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may resolve to anything
