"""The sizes that pictures are resized to before the model sees them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from qsplit.errors import UsageError

__all__ = ["Resize"]


@dataclass(frozen=True, slots=True)
class Resize:
    """The per-picture sizes of qwen-vl-utils' messages; all None leaves sizing to the checkpoint's processor.

    ``min_pixels`` and ``max_pixels`` bound height x width after resizing; ``resized_height`` and ``resized_width``,
    given together, fix them (rounded to whole tokens).
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, but must be at least 1.")
        if (self.resized_height is None) != (self.resized_width is None):
            raise UsageError("resized_height and resized_width must be given together.")

    def options(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if value is not None}
