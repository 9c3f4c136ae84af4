"""The sample album from files to answers, every step a process of its own, as on different days.

The last two steps are this module run with a folder and the name of the step: one answers in a process that never
loads vision code or weights, the other asks the unsplit model about the pixels; their outputs are compared.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qsplit import bundled
from qsplit.errors import QsplitError
from qsplit.mini import photographs, scenes
from qsplit.mini import questions as phrases

__all__ = ["DemoReport", "run"]

_PICTURE = "red-panda.jpg"
_TOKENS = 24
_DRAWN_FROM = 2026  # the drawings and the choice of phrasings
_SCENES = 4  # drawings added to the photographs: what they show is known exactly
_SCENE_SIZE = 168  # pixels a side
_SCENE_KINDS = ("count", "shape", "colour", "presence", "beside", "over", "background")
_PHOTOGRAPHS = ("castle-clinton-1961.jpg", "citrus-fruits.jpg", "mont-saint-michel.jpg", "red-pyramid.jpg")
_PHOTOGRAPH_KINDS = ("brightness", "greyness", "sharpness", "turned", "main colour")
_UPRIGHT_AGAIN = 6  # EXIF orientation: shown turned by 90 degrees clockwise
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo found; of so many ``texts`` the drawings were ``found`` first, ``right`` answers were the true
    ones, and ``equal`` says that split and unsplit agreed in every bit and token that was compared.
    """

    pictures: int
    encoded: int
    again: int
    groups: int
    neighbours: int
    texts: int
    found: int
    answers: int
    right: int
    equal: bool


def run(folder: str | None, say: Callable[[str], None]) -> DemoReport:
    """Run every step in ``folder`` (a temporary one if None), telling it through ``say``."""
    with tempfile.TemporaryDirectory(prefix="qsplit-demo-") as temporary:
        place = Path(folder or temporary)
        place.mkdir(parents=True, exist_ok=True)
        return _run(place, say)


def _run(place: Path, say: Callable[[str], None]) -> DemoReport:
    n_pictures = make_album(place / "pictures")
    say(f"1. Index {n_pictures} files: {len(bundled.photos())} photographs, copies of some, and {_SCENES} drawings")
    first = _index(place, say)
    say("\n2. Index again, in a new process: nothing to do")
    second = _index(place, say)
    say("\n3. Duplicates")
    groups = _lines(_qsplit(place, "duplicates", "--json"))
    for group in groups:
        members = [f"{Path(m['path']).name} ({m['score']:.2f})" for m in group["members"] if m["path"] != group["keep"]]
        say(f"   {group['kind']}: keep {Path(group['keep']).name}, also {', '.join(members)}")
    say(f"\n4. Nearest to {_PICTURE}")
    neighbours = _lines(
        _qsplit(place, "search", "--like", str(place / "pictures" / _PICTURE), "--limit", "4", "--json")
    )
    for match in neighbours:
        say(f"   {match['score']:.4f}  {Path(match['path']).name}")
    found = _searched(place, say)
    answers = _answers(place, say)
    equal = _compared(place, answers, say)
    return DemoReport(
        pictures=n_pictures,
        encoded=first["encoded"],
        again=second["encoded"],
        groups=len(groups),
        neighbours=len(neighbours),
        texts=len(found),
        found=sum(found),
        answers=len(answers["replies"]),
        right=_n_right(answers["replies"]),
        equal=equal,
    )


def make_album(folder: Path) -> int:
    """The sample photographs and some copies as people make them; returns the number of files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in bundled.photos():
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(folder / "coffee.jpg", folder / "coffee (1).jpg")
    with Image.open(folder / _PICTURE) as panda:
        panda.save(folder / "red-panda-saved-again.jpg", quality=60)
        panda.resize((panda.width // 2, panda.height // 2)).save(folder / "red-panda-small.jpg", quality=85)
        panda.convert("RGB").save(folder / "red-panda.png")
    with Image.open(folder / "koala.jpg") as koala:
        exif = Image.Exif()
        exif[_ORIENTATION] = _UPRIGHT_AGAIN
        turned = koala.convert("RGB").transpose(Image.Transpose.ROTATE_90)
        turned.save(folder / "koala-turned.png", exif=exif)
    for name, (drawing, _) in drawings().items():
        drawing.save(folder / name)
    return len(list(folder.iterdir()))


def drawings() -> dict[str, tuple[Image.Image, scenes.Scene]]:
    """Drawn scenes by file name, always the same, of two things and more."""
    made = {}
    for i in range(_SCENES):
        rng = np.random.default_rng([_DRAWN_FROM, i])
        scene = scenes.invent(rng, _SCENE_SIZE, _SCENE_SIZE, count=i + 2)
        made[f"drawing-{i + 1}.png"] = scenes.draw(scene, rng), scene
    return made


def questions() -> dict[str, list[phrases.Question]]:
    """Questions with their true answers by file name, in English and Chinese by turns.

    What a drawing shows is known from its making; the photographs are as their cameras made them, so they stand upright
    and are sharp, and their colours are counted.
    """
    asked = {
        name: _asked(_SCENE_KINDS, name, partial(phrases.about_scene, scene)) for name, (_, scene) in drawings().items()
    }
    files = {file.name: file for file in bundled.photos()}
    for name in _PHOTOGRAPHS:
        with Image.open(files[name]) as image:
            labels = photographs.labels_of(image.convert("RGB")) | {"turned": "upright", "sharpness": "sharp"}
        asked[name] = _asked(_PHOTOGRAPH_KINDS, name, partial(phrases.about_photograph, labels))
    return asked


def _asked(
    kinds: Sequence[str], name: str, about: Callable[[phrases.Asker, str], phrases.Question | None]
) -> list[phrases.Question]:
    """A question of each kind that there is something to ask, in phrasings kept from training."""
    rng = np.random.default_rng([_DRAWN_FROM, *name.encode()])
    made = [
        about(phrases.Asker(rng, language, held_out=True), kind)
        for kind, language in zip(kinds, cycle(phrases.LANGUAGES), strict=False)
    ]
    return [question for question in made if question]


def _index(place: Path, say: Callable[[str], None]) -> dict[str, Any]:
    (report,) = _lines(_qsplit(place, "index", str(place / "pictures"), "--semantic", "--json"))
    say(
        f"   {report['found']} found, {report['encoded']} encoded, {report['reused']} reused, "
        f"{report['unchanged']} unchanged, in {report['seconds']:.1f} s"
    )
    return dict(report)


def _searched(place: Path, say: Callable[[str], None]) -> list[bool]:
    """Whether the drawing that a text describes is found first, of one in each language."""
    say("\n5. Search by a text")
    found = []
    for language, (name, (_, scene)) in zip(phrases.LANGUAGES, drawings().items(), strict=False):
        text = phrases.retrieval_text(scene, language, phrases.RETRIEVAL_FORMS)
        (match,) = _lines(_qsplit(place, "search", f'"{text}"', "--all", "--limit", "1", "--json"))
        shown = Path(match["path"]).name
        found.append(shown == name)
        say(f"   {text} -> {match['score']:.4f}  {shown}{'' if found[-1] else f'   WRONG, the truth is: {name}'}")
    return found


def _answers(place: Path, say: Callable[[str], None]) -> dict[str, Any]:
    say("\n6. Ask, in a process that has only the language half")
    (answers,) = _lines(_python(place, "answer"))
    counts = answers["parameters"]
    say(
        f"   parameters: whole {counts['whole']:,} = vision {counts['vision']:,} + language {counts['language']:,}; "
        f"vision parameters in this process: {counts['vision here']}; vision code imported: {answers['vision code']}"
    )
    for reply in answers["replies"]:
        verdict = "" if reply["answer"] == reply["truth"] else f"   WRONG, the truth is: {reply['truth']}"
        say(f"   {reply['name']}: {reply['question']} -> {reply['answer']}{verdict}")
    right = _n_right(answers["replies"])
    say(f"   {right} of {len(answers['replies'])} right; the model card says how often over thousands of questions")
    return dict(answers)


def _n_right(replies: Sequence[Mapping[str, Any]]) -> int:
    return sum(reply["answer"] == reply["truth"] for reply in replies)


def _compared(place: Path, answers: dict[str, Any], say: Callable[[str], None]) -> bool:
    say("\n7. Ask the unsplit model about the pixels, and compare")
    (unsplit,) = _lines(_python(place, "unsplit"))
    tokens = sum(a["tokens"] == b["tokens"] for a, b in zip(answers["replies"], unsplit["replies"], strict=True))
    bits = sum(a == b for a, b in zip(answers["sha256"], unsplit["sha256"], strict=True))
    equal: bool = tokens == len(answers["replies"]) and bits == len(answers["sha256"])
    say(
        f"   features equal bit for bit: {bits} of {len(answers['sha256'])}; "
        f"answers equal token for token: {tokens} of {len(answers['replies'])}"
    )
    return equal


def _qsplit(place: Path, *arguments: str) -> str:
    return _process([sys.executable, "-m", "qsplit", *arguments, "--store", str(place / "album.qsplit")])


def _python(place: Path, step: str) -> str:
    return _process([sys.executable, "-m", "qsplit.mini.demo", step, str(place)])


def _process(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own interpreter
    if done.returncode:
        raise QsplitError(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def _lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def _answer(place: Path) -> dict[str, Any]:
    """Step 6: the store and the language half, and nothing that could look at a picture."""
    from qsplit.media.images import Limits
    from qsplit.models.language.model import LanguageModel, Sampling
    from qsplit.qa.ask import ask, fetch
    from qsplit.store.feature_store import FeatureStore
    from qsplit.store.lookup import locate

    store, language = FeatureStore(place / "album.qsplit"), LanguageModel.from_pretrained()
    asked = questions()
    pictures = [locate(store, place / "pictures" / name, Limits()) for name in asked]
    replies: list[dict[str, Any]] = []
    for (name, wanted), picture in zip(asked.items(), pictures, strict=True):
        answered = ask(store, language, [picture], [one.text for one in wanted], sampling=Sampling(_TOKENS), exact=True)
        replies += [
            {"name": name, "truth": one.answer, **asdict(reply)} for one, reply in zip(wanted, answered, strict=True)
        ]
    counts = {half: language.checkpoint.count(half) for half in ("vision", "language")}
    return {
        "parameters": {**counts, "whole": sum(counts.values()), "vision here": language.n_vision_parameters},
        "vision code": "qsplit.models.vision.encoder" in sys.modules,
        "sha256": [features.to_payload().sha256 for features in fetch(store, language, pictures)],
        "replies": replies,
    }


def _unsplit(place: Path) -> dict[str, Any]:
    """Step 7: the plain transformers way, with nothing of qsplit but the place of the bundled checkpoint."""
    import hashlib

    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from qsplit import bundled

    model = AutoModelForImageTextToText.from_pretrained(bundled.checkpoint(), dtype=torch.bfloat16).eval()
    processor: Any = AutoProcessor.from_pretrained(bundled.checkpoint())
    hashes, replies = [], []
    for name, asked in questions().items():
        with Image.open(place / "pictures" / name) as opened:
            image = opened.convert("RGB")
        for question in asked:
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(text=[text], images=[image], return_tensors="pt")
            out = model.generate(**inputs, max_new_tokens=_TOKENS, do_sample=False)
            replies.append({"name": name, "tokens": out[0, inputs.input_ids.shape[1] :].tolist()})
        with torch.no_grad():
            seen: Any = model.get_image_features(inputs.pixel_values, inputs.image_grid_thw, return_dict=True)
        bits = seen.pooler_output[0].contiguous().view(torch.uint8).numpy()
        hashes.append(hashlib.sha256(bits).hexdigest())
    return {"sha256": hashes, "replies": replies}


if __name__ == "__main__":
    step, place = sys.argv[1:]
    print(json.dumps({"answer": _answer, "unsplit": _unsplit}[step](Path(place))))
