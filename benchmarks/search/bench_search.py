"""Search, in parts: vectors beside peers, texts to drawn scenes, and garments from files to answers.

    python -m benchmarks.search.bench_search [vectors] [scenes] [garments] [--json FILE] [--folder FOLDER]
                                             [options of parts]

Without a part, all of them. Each has a module of its own, which says what is measured and against what. A missed goal
is only printed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common.report import Goal, tell

PARTS = ("vectors", "scenes", "garments")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"{', '.join(PARTS)} [all].")
    parser.add_argument("--folder", type=Path, help="Where to write [a temporary folder].")
    parser.add_argument("--json", type=Path)
    modules = {part: importlib.import_module(f"benchmarks.search.search_{part}") for part in PARTS}
    for module in modules.values():
        module.add_options(parser)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    goals: dict[str, Goal] = {}
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found, compared = modules[part].run(options, Path(folder))
        figures |= found
        ratios |= compared
        goals |= modules[part].GOALS
    tell(figures, ratios, goals, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
