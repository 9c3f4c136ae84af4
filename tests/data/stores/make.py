"""Make the small stores of earlier layouts beside this file, each by the code of its time: ``python make.py v4``.

It runs in a clone with the project's history, with the libraries of today. What is made is listed in ../README.md.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

HERE = Path(__file__).parent
ALBUM = Path("/tmp/album")  # nobody's folder: the paths in a store are absolute
SIDE = 96
# The last commit of each schema version, and what its `index` can do beside encoding.
COMMITS = {
    "v0": ("e077442", []),
    "v1-early": ("e077442", []),
    "v1": ("85ebb2b", []),
    "v2": ("daf9def", []),
    "v3": ("6a47edb", []),
    "v4": ("0db3159", ["--captions", "--semantic"]),
    "v5": ("f93c711", ["--captions", "--semantic"]),
}
# No commit has version 0. What the migrations take for it is version 1 without the name of a codec.
NO_CODEC = {
    "qsplit/store/schema.py": [(r"^VERSION = 1$", "VERSION = 0"), (r'^ *_required\("codec", .*\n', "")],
    "qsplit/store/records.py": [(r'^ *"codec": payload.codec,\n', "")],
}
POLICY = """\
[[check]]
name = "kind"
question = "What is it?"
choices = ["drawing", "photograph"]
flag = "drawing"
"""


def draw(seed: int) -> Image.Image:
    """A picture with corners enough to be recognized by."""
    numbers = np.random.default_rng(seed)
    image = Image.fromarray(numbers.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((SIDE, SIDE), 3)
    for _ in range(6):
        x, y, width, height = (int(n) for n in (*numbers.integers(0, SIDE - 24, 2), *numbers.integers(10, 40, 2)))
        colour = tuple(int(n) for n in numbers.integers(0, 256, 3))
        ImageDraw.Draw(image).rectangle((x, y, x + width, y + height), fill=colour)
    return image


def make(name: str) -> None:
    commit, options = COMMITS[name]
    with tempfile.TemporaryDirectory() as folder:
        code, store = Path(folder) / "code", Path(folder) / f"{name}.qsplit"
        export(commit, code)
        for file, changes in NO_CODEC.items() if name == "v0" else ():
            text = (code / file).read_text()
            for wanted, instead in changes:
                text, found = re.subn(wanted, instead, text, flags=re.MULTILINE)
                assert found == 1, (file, wanted)
            (code / file).write_text(text)
        policy = Path(folder) / "policy.toml"
        policy.write_text(POLICY)

        def qsplit(*arguments: str) -> None:
            command = [sys.executable, "-P", "-m", "qsplit", *arguments, "--store", str(store)]
            env = os.environ | {"PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1", "QSPLIT_CACHE": f"{folder}/cache"}
            done = subprocess.run(command, env=env, check=False).returncode
            assert done in (0, 6), arguments  # 6 of a check that flags

        garden, again, jpeg, street = (ALBUM / file for file in ("garden.png", "again.png", "garden.jpg", "street.png"))
        ALBUM.mkdir()
        try:
            for path in (garden, again, jpeg):
                draw(1).save(path)
            draw(2).save(street)
            qsplit("index", str(ALBUM), *options)
            if name not in ("v0", "v1-early"):
                qsplit("check", str(policy))
                qsplit("snapshot", "before")
            qsplit("duplicates")
            if name in ("v3", "v4", "v5"):
                qsplit("duplicates", "--not", str(garden), str(street))
        finally:
            shutil.rmtree(ALBUM)
        with tarfile.open(HERE / f"{name}.tar.xz", "w:xz", preset=9) as tar:
            tar.add(store, name, filter=nobodys)


def export(commit: str, to: Path) -> None:
    to.mkdir()
    tar = subprocess.run(["git", "archive", commit, "qsplit"], cwd=HERE.parents[2], check=True, stdout=subprocess.PIPE)
    subprocess.run(["tar", "x"], cwd=to, check=True, input=tar.stdout)


def nobodys(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


if __name__ == "__main__":
    for made in sys.argv[1:] or COMMITS:
        make(made)
