"""Put the sizes that follow from the models' shapes into ``operating.md``: ``python docs/sizing.py [--check]``.

With ``--check`` nothing is written, and the exit code is 1 if something would be.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent / "operating.md"
PICTURE = (1024, 768)  # width, height
PLANES = 0.70  # of raw, measured by benchmarks/store/bench_store.py; other features shrink otherwise
ITEM, SCALE = 2, 4  # bytes of a bfloat16, and of the scale of an int8 row
SECONDS = (0.05, 0.5)  # of encoding a picture: what is assumed, not what was measured
SIZED = ("Qwen2-VL-2B", "raw"), ("Qwen2-VL-2B", "int8"), ("Qwen2-VL-7B", "int8"), ("Qwen3-VL-8B", "int8")


@dataclass(frozen=True, slots=True)
class Model:
    """What the size of a row depends on; ``unit`` is the side of the square of pixels that becomes a token."""

    width: int
    unit: int = 28
    levels: int = 0

    def tokens(self, picture: tuple[int, int] = PICTURE) -> int:
        """Of a picture within the bounds of its processor, each side taken to the nearest multiple of ``unit``."""
        return round(picture[0] / self.unit) * round(picture[1] / self.unit)

    def nbytes(self, codec: str) -> float:
        """Of the payload of one picture; its row adds a kilobyte of columns."""
        rows = self.tokens() * (1 + self.levels)
        raw = rows * self.width * ITEM
        return {"raw": raw, "planes-zstd": PLANES * raw, "int8": rows * (self.width + SCALE)}[codec]


MODELS = {
    "Qwen2-VL-2B": Model(1536),
    "Qwen2-VL-7B": Model(3584),
    "Qwen2-VL-72B": Model(8192),
    "Qwen2.5-VL-3B": Model(2048),
    "Qwen2.5-VL-7B": Model(3584),
    "Qwen2.5-VL-32B": Model(5120),
    "Qwen2.5-VL-72B": Model(8192),
    "Qwen3-VL-2B": Model(2048, unit=32, levels=3),
    "Qwen3-VL-4B": Model(2560, unit=32, levels=3),
    "Qwen3-VL-8B": Model(4096, unit=32, levels=3),
    "Qwen3-VL-32B": Model(5120, unit=32, levels=3),
}
CODECS = ("raw", "planes-zstd", "int8")


def sizes() -> str:
    """MB a picture, a row for each model."""
    head = ["model", "tokens", "width", "levels", *(f"{codec}, MB" for codec in CODECS)]
    rows = [
        [name, str(m.tokens()), str(m.width), str(m.levels), *(f"{m.nbytes(codec) / 1e6:.2f}" for codec in CODECS)]
        for name, m in MODELS.items()
    ]
    return _table(head, rows)


def scales() -> str:
    """TB of features and days of encoding, a row for each number of pictures."""
    head = [
        "pictures",
        *(f"{name} {codec}, TB" for name, codec in SIZED),
        *(f"days of one device at {s} s" for s in SECONDS),
    ]
    rows = []
    for power in range(5, 10):
        stored = (_three(10**power * MODELS[name].nbytes(codec) / 1e12) for name, codec in SIZED)
        rows.append([f"10^{power}", *stored, *(_three(10**power * s / 86_400) for s in SECONDS)])
    return _table(head, rows)


def _three(number: float) -> str:
    """To three digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def filled(page: str) -> str:
    """The page with its tables made anew; raises `ValueError` where it has no place for one."""
    for name, table in (("sizes", sizes()), ("scales", scales())):
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not block.search(page):
            raise ValueError(f"{PAGE.name} has no <!-- {name} --> block.")
        page = block.sub(lambda found, table=table: found[1] + table + found[2], page)  # type: ignore[misc]
    return page


def main() -> int:
    """Write the page, or with ``--check`` say whether it would change."""
    page = PAGE.read_text(encoding="utf-8")
    made = filled(page)
    if sys.argv[1:] == ["--check"]:
        if made != page:
            print(f"docs/{PAGE.name} is not what the models' shapes make: run {sys.argv[0]}")
        return int(made != page)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
