"""Measure the bundled checkpoint on what it was not trained on: ``python -m qsplit.mini.evaluate CACHE``.

Pictures go through `VisionEncoder`, as a user's would. An answer is right when it is the expected one, word for word:
every token of the expected answer, the end token included, must be the likeliest one after those before it, which is
what greedy decoding would say. Two numbers stand beside each: how often the commonest answer would be right, and how
often the same questions are answered right over the features of *another* picture.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from PIL import Image
from tokenizers import Tokenizer
from transformers import Qwen2VLForConditionalGeneration

from qsplit import bundled
from qsplit.features.features import Features
from qsplit.media.phash import perceptual_hash
from qsplit.mini import download, photographs, scenes
from qsplit.mini import questions as phrases
from qsplit.mini.build import half_sizes
from qsplit.mini.forward import narrow
from qsplit.mini.model_card import EVALUATION, write_report
from qsplit.mini.packing import Packed, Reader, Segment
from qsplit.mini.questions import CANNOT_TELL, LANGUAGES, Asker, Question
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.vision.encoder import VisionEncoder

__all__ = ["Examinee", "Row", "average_precision", "copies", "exam", "garments", "photos", "retrieval", "scene_exam"]

SEED = 20_000_000  # training seeds its pictures by step, far below
SCENE_KINDS = (
    "colour", "background", "shape", "count", "presence", "beside", "over", "where", "shapes", "colours", "caption",
    CANNOT_TELL,
)  # fmt: skip
PHOTO_KINDS = ("main colour", "brightness", "sharpness", "greyness", "turned", "kind", CANNOT_TELL)
GARMENT_KINDS = ("garment", "is garment", CANNOT_TELL)
GARMENT_SIDE = 84
ROWS = 16  # read at a time
NO_UP = ("galaxies.jpg", "citrus-fruits.jpg")  # of the sample photographs
WAYS = ("trained", "held out")

Asked = list[tuple[int, Question, str]]  # the picture's number, the question, and how it is phrased


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the card: shares of right answers of ``n`` questions, and the two baselines."""

    part: str
    skill: str
    language: str
    phrasing: str
    n: int
    right: float
    majority: float
    other_picture: float


class Examinee:
    """Both halves of a checkpoint folder, asked many questions at a time."""

    def __init__(self, folder: Path) -> None:
        self.encoder = VisionEncoder.from_pretrained(str(folder))
        self.model: Any = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.reader = Reader(self.model, Tokenizer.from_file(str(folder / "tokenizer.json")))

    def see(self, images: Sequence[Image.Image]) -> list[Features]:
        return self.encoder.encode(images)

    def read(
        self, rows: Sequence[Sequence[Segment]], features: Sequence[Features] = ()
    ) -> tuple[Packed, torch.Tensor, torch.Tensor]:
        """As `Reader.read`, of pictures of one grid or of none."""
        with torch.no_grad(), narrow():
            if not features:
                return self.reader.read(rows)
            _, height, width = features[0].grid_thw
            merge = features[0].encoder.merge_size
            return self.reader.read(
                rows, torch.stack([one.to_torch()[0].float() for one in features]), (width // merge, height // merge)
            )

    def right(self, features: Sequence[Features], asked: Asked) -> list[bool]:
        """Whether each question about ``features[number]`` is answered as expected."""
        result = [False] * len(asked)
        order = sorted(range(len(asked)), key=lambda i: (features[asked[i][0]].grid_thw, asked[i][0]))
        for _, same_grid in groupby(order, key=lambda i: features[asked[i][0]].grid_thw):
            rows = [list(group) for _, group in groupby(same_grid, key=lambda i: asked[i][0])]
            for start in range(0, len(rows), ROWS):
                some = rows[start : start + ROWS]
                segments = [[self.reader.packer.question(asked[i][1]) for i in row] for row in some]
                packed, states, _ = self.read(segments, [features[asked[row[0]][0]] for row in some])
                logits = F.linear(packed.before_targets(states).float(), self.model.lm_head.weight.float())
                right = packed.wholly((logits.argmax(-1) == packed.targets).float())
                for i, value in zip(chain.from_iterable(some), right.tolist(), strict=True):
                    result[i] = value > 0
        return result

    def image_vectors(self, features: Sequence[Features]) -> torch.Tensor:
        """The state before the last layer after the retrieval prompt, ``(n, width)``, of length 1."""
        to_find = [self.reader.packer.picture_to_find()]
        return self._vectors([to_find] * len(features), features)

    def text_vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """The same state after texts and their retrieval prompt."""
        return self._vectors([[self.reader.packer.text_to_find_by(text)] for text in texts])

    def _vectors(self, rows: Sequence[Sequence[Segment]], features: Sequence[Features] = ()) -> torch.Tensor:
        found = []
        for start in range(0, len(rows), ROWS):
            packed, _, early = self.read(rows[start : start + ROWS], features[start : start + ROWS])
            found.append(packed.at_ends(early))
        return F.normalize(torch.cat(found).float(), dim=-1)


def exam(who: Examinee, part: str, features: Sequence[Features], asked: Asked, *, control: bool = True) -> list[Row]:
    """Ask everything twice, over the right features and over another picture's, and count.

    Without ``control`` the second is left out, and its share is NaN.
    """
    right = who.right(features, asked)
    swapped = [((number + len(features) // 2) % len(features), question, way) for number, question, way in asked]
    other = who.right(features, swapped) if control else [math.nan] * len(asked)
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for i, (_, question, way) in enumerate(asked):
        groups[question.skill, question.language, way].append(i)
    rows = []
    for (skill, language, way), members in sorted(groups.items()):
        # The commonest answer to questions of the same kind.
        kinds: dict[str, Counter[str]] = defaultdict(Counter)
        for i in members:
            kinds[asked[i][1].kind][asked[i][1].answer] += 1
        majority = sum(counts.most_common(1)[0][1] for counts in kinds.values())
        n = len(members)
        rows.append(
            Row(
                part,
                skill,
                language,
                way,
                n,
                sum(right[i] for i in members) / n,
                majority / n,
                sum(other[i] for i in members) / n,
            )
        )
    return rows


def questions(
    number: int, rng: np.random.Generator, kinds: Sequence[str], about: Callable[[Asker, str], Question | None]
) -> Iterator[tuple[int, Question, str]]:
    for kind in kinds:
        for language in LANGUAGES:
            for way in WAYS:
                if question := about(Asker(rng, language, held_out=way == "held out"), kind):
                    yield number, question, way


def scene_exam(who: Examinee, number: int, *, control: bool = True) -> list[Row]:
    """Ask about ``number`` drawn scenes that training did not see; ``control`` asks without the right picture, too."""
    rng = np.random.default_rng([SEED, 1])
    made = [scenes.invent(rng, *((168, 168), (196, 140), (168, 224))[i % 3]) for i in range(number)]
    features = who.see([scenes.draw(scene, rng) for scene in made])
    asked = [
        one
        for i, scene in enumerate(made)
        for one in questions(i, rng, SCENE_KINDS, partial(phrases.about_scene, scene))
    ]
    return exam(who, "scenes", features, asked, control=control)


def photos(
    who: Examinee, part: str, pictures: Sequence[tuple[Image.Image, bool]], number: int, *, control: bool = True
) -> list[Row]:
    """Attributes of ``number`` edits of photographs, each given with whether it has a clear up."""
    rng = np.random.default_rng([SEED, 2])
    edits = []
    for i in range(number):
        image, up = pictures[i % len(pictures)]
        size = (252, 168) if rng.random() < 0.5 else (168, 252)
        edits.append(photographs.edit(image, up, size, rng))
    features = who.see([picture for picture, _, _ in edits])
    asked = [
        one
        for i, (_, labels, _) in enumerate(edits)
        for one in questions(
            i,
            rng,
            PHOTO_KINDS,
            partial(phrases.about_photograph, labels),
        )
    ]
    return exam(who, part, features, asked, control=control)


def garments(who: Examinee, images: np.ndarray, labels: np.ndarray, *, control: bool = True) -> list[Row]:
    """Fashion-MNIST pictures ``(n, 28, 28)``, enlarged three times."""
    rng = np.random.default_rng([SEED, 3])
    side = (GARMENT_SIDE, GARMENT_SIDE)
    large = [Image.fromarray(one).resize(side, Image.Resampling.BICUBIC).convert("RGB") for one in images]
    features = who.see(large)
    asked = [
        one
        for i, label in enumerate(labels)
        for one in questions(
            i,
            rng,
            GARMENT_KINDS,
            partial(phrases.about_garment, int(label)),
        )
    ]
    return exam(who, "garments", features, asked, control=control)


def retrieval(who: Examinee, number: int) -> dict[str, float]:
    """Text to picture over scenes with different descriptions: shares found first and among the first ten."""
    rng = np.random.default_rng([SEED, 4])
    made: dict[str, scenes.Scene] = {}
    while len(made) < number:
        scene = scenes.invent(rng, 168, 168)
        made.setdefault(phrases.retrieval_text(scene, "en", 0), scene)
    images = who.image_vectors(who.see([scenes.draw(scene, rng) for scene in made.values()]))
    found: dict[str, float] = {"n": number}
    for language in LANGUAGES:
        described = [phrases.retrieval_text(scene, language, phrases.RETRIEVAL_FORMS) for scene in made.values()]
        texts = who.text_vectors(described)
        scores = texts @ images.T
        ranks = (scores > scores.diagonal()[:, None]).sum(1)
        found[f"recall@1 {language}"] = float((ranks < 1).float().mean())
        found[f"recall@10 {language}"] = float((ranks < 10).float().mean())
    return found


def difference_hash(image: Image.Image) -> int:
    """The 64-bit dHash: of a 9 x 8 grey reduction, which pixels are brighter than their left neighbour."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Micro average precision: all pairs ranked together by score, ties at their mean precision's lower end."""
    order = np.lexsort((truth, -scores))  # among equals the wrong ones first
    hits = truth[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].sum() / hits.sum())


def copies(who: Examinee, pictures: Sequence[Image.Image], each: int) -> dict[str, float]:
    """Find the originals of copies: two thirds of the photographs are in the library, copies are of all of them."""
    rng = np.random.default_rng([SEED, 5])
    library = [i for i in range(len(pictures)) if i % 3]
    asked = [(i, photographs.copy_of(image, image.size, rng)) for i, image in enumerate(pictures) for _ in range(each)]
    truth = np.array([[i == j for j in library] for i, _ in asked]).ravel()
    originals = np.stack([one.pooled() for one in who.see([pictures[i] for i in library])])
    queries = np.stack([one.pooled() for one in who.see([image for _, image in asked])])
    found = {
        "queries": len(asked),
        "library": len(library),
        "pooled": average_precision((queries @ originals.T).ravel(), truth),
    }
    for name, hashed in (("pHash", perceptual_hash), ("dHash", difference_hash)):
        left = [hashed(image) for _, image in asked]
        right = [hashed(pictures[i]) for i in library]
        distance = np.array([[(a ^ b).bit_count() for b in right] for a in left], np.float32)
        found[name] = average_precision(-distance.ravel(), truth)
    return found


def median_ms(action: Callable[[], object], times: int) -> float:
    """The median of so many timings, after two that are left out."""
    taken = []
    for _ in range(times + 2):
        start = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - start))
    return float(np.median(taken[2:]))


def speed(folder: Path, times: int = 30) -> dict[str, float]:
    """Milliseconds for one picture of 224 x 168 pixels, and for a short answer to a question about it."""
    encoder, language = VisionEncoder.from_pretrained(str(folder)), LanguageModel.from_pretrained(str(folder))
    rng = np.random.default_rng([SEED, 6])
    scene = scenes.invent(rng, 224, 168)
    image = scenes.draw(scene, rng)
    (features,) = encoder.encode([image])
    question = phrases.about_scene(scene, Asker(rng, "en"), "background")
    assert question is not None
    sampling = Sampling(max_new_tokens=8)
    return {
        "threads": torch.get_num_threads(),
        "encode ms": median_ms(lambda: encoder.encode([image]), times),
        "answer ms": median_ms(lambda: language.answer([features], question.text, sampling=sampling), times),
    }


@click.command()
@click.argument("cache", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--folder", type=click.Path(path_type=Path), default=bundled.checkpoint(), help="The checkpoint.")
@click.option("--scale", default=1.0, help="A share of the pictures, for a quick look.")
def main(cache: Path, folder: Path, scale: float) -> None:
    """Measure the checkpoint in FOLDER; with --scale 1, write its evaluation.json and its card.

    CACHE is where the pictures are, or are to be fetched to.
    """
    before = json.loads((folder / EVALUATION).read_text(encoding="utf-8")) if scale >= 1 else {}
    download.fetch(cache)
    report = evaluate(folder, cache, scale)
    for row in report["rows"]:
        click.echo(
            "{part:12} {skill:18} {language} {phrasing:9} {n:5} right {right:6.1%} commonest {majority:6.1%} "
            "other picture {other_picture:6.1%}".format_map(row)
        )
    click.echo(json.dumps({key: report[key] for key in ("retrieval", "copies", "speed")}, indent=1))
    if scale >= 1:
        write_report(folder, report | {"training": before["training"]})


def evaluate(folder: Path, cache: Path, scale: float = 1.0) -> dict[str, Any]:
    """All figures of the card, over this share of the pictures."""
    who = Examinee(folder)
    number = int(1000 * scale)
    rows = scene_exam(who, number)
    held_out = [(Image.fromarray(one.image), one.up) for one in download.load_photographs(cache, "held-out")]
    rows += photos(who, "photographs", held_out, number)
    rows += photos(who, "samples", samples(), number)
    images, labels = download.load_garments(cache, "test")
    n = int(len(labels) * scale)
    rows += garments(who, images[:n], labels[:n])
    vision, language = half_sizes(who.model)
    return {
        "parameters": {"vision": vision, "language": language},
        "rows": [asdict(row) for row in rows],
        "retrieval": retrieval(who, number),
        "speed": speed(folder),
        "copies": copies(who, [image for image, _ in held_out][: max(12, int(len(held_out) * scale))], 3),
    }


def samples() -> list[tuple[Image.Image, bool]]:
    """The photographs that ship with the package, which training left out; most of which have a clear up."""
    found = []
    for file in bundled.photos():
        with Image.open(file) as image:
            found.append((image.convert("RGB"), file.name not in NO_UP))
    return found


if __name__ == "__main__":
    main()
