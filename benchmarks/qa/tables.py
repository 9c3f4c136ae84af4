"""Put what `bench_ask` measured into the README, as a table and a chart: ``python -m benchmarks.qa.tables [--check]``.

The figures lie in ``benchmarks/results/ask.json``, where ``bench_ask.py --json`` wrote them; the chart is drawn beside
them. With ``--check`` nothing is written, and the exit code is 1 if something would be.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "ask.json"
CHART = RESULTS.with_suffix(".svg")
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- bench_ask -->\n).*?(<!-- /bench_ask -->)", re.DOTALL)

WAYS = {"split": "shared", "split, exact": "exact", "held": "unsplit, features held by hand", "unsplit": "unsplit"}
LINES = {"unsplit": "#c2410c", "split": "#1d4ed8"}  # colours that are read on light and on dark paper
TITLE = "Seconds against the number of questions about one picture"
WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 120, 20, 44  # margins

Figures = Mapping[str, float]
Points = Sequence[tuple[int, float]]


def table(figures: Figures) -> str:
    """Seconds of each way, a row for each length of the answers."""
    rows = [["seconds", *WAYS.values()], ["---", *["---:"] * len(WAYS)]]
    for what in dict.fromkeys(
        match[1] for name in figures if (match := re.match(r"(\d+ questions, \d+ token)s s", name))
    ):
        questions, tokens = re.findall(r"\d+", what)
        label = f"{questions} answers of {tokens} token{'s' * (tokens != '1')}"
        rows.append([label, *(f"{figures[f'{what}s s, {way}']:.1f}" for way in WAYS)])
    checks, each = figures["20 checks of each picture s, split"], figures["pictures checked"]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + f"\n\nTwenty checks of each of {each:.0f} pictures took {checks:.1f} seconds.\n"


def curves(figures: Figures) -> Mapping[str, Points]:
    """(questions, seconds) of each line of the chart."""
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in LINES}
    for key, seconds in figures.items():
        if match := re.fullmatch(r"curve s, (\d+), (.+)", key):
            found[match[2]].append((int(match[1]), seconds))
    return found


def chart(lines: Mapping[str, Points]) -> str:
    """An SVG of seconds against questions."""
    most_x = max(x for points in lines.values() for x, _ in points)
    most_y = max(y for points in lines.values() for _, y in points)
    step = next(size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500) if most_y / size <= 6)
    most_y = step * -(-most_y // step)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + x / most_x * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - y / most_y * (HEIGHT - TOP - BOTTOM), 1),
        )

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{TITLE}">',
        '<g font-family="sans-serif" font-size="13" fill="#808080">',
    ]
    for y in range(0, int(most_y) + 1, step):
        (left, height), (right, _) = at(0, y), at(most_x, y)
        drawn.append(f'<path d="M{left} {height}H{right}" stroke="#808080" stroke-opacity=".3"/>')
        drawn.append(f'<text x="{left - 8}" y="{height + 4}" text-anchor="end">{y}</text>')
    for x, _ in lines["unsplit"]:
        drawn.append(f'<text x="{at(x, 0)[0]}" y="{at(x, 0)[1] + 18}" text-anchor="middle">{x}</text>')
    for name, points in lines.items():
        path = "L".join(f"{x} {y}" for x, y in (at(*point) for point in points))
        (end, height), colour = at(*points[-1]), LINES[name]
        drawn.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        drawn.append(f'<text x="{end + 8}" y="{height + 4}" fill="{colour}">{name}, {points[-1][1]:.1f} s</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">questions about one picture</text>')
    drawn.append(f'<text x="{LEFT - 40}" y="{TOP - 6}">seconds</text>')
    return "\n".join([*drawn, "</g>", "</svg>"]) + "\n"


def made(figures: Figures) -> dict[Path, str]:
    """File -> what it should hold."""
    image = f"![{TITLE}]({CHART.relative_to(ROOT).as_posix()})"
    block = f"{table(figures)}\n{image}\n"
    readme = BLOCK.sub(lambda found: found[1] + block + found[2], README.read_text(encoding="utf-8"))
    return {README: readme, CHART: chart(curves(figures))}


def main() -> int:
    figures: Figures = json.loads(RESULTS.read_text(encoding="utf-8"))["figures"]
    stale = {p: t for p, t in made(figures).items() if not p.exists() or p.read_text(encoding="utf-8") != t}
    if sys.argv[1:] == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what {RESULTS.name} makes: run python -m benchmarks.qa.tables")
        return bool(stale)
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
