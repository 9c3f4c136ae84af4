"""Many questions about one picture: features from a store against the unsplit model asked again each time.

    python -m benchmarks.qa.bench_ask [--shape 2b|small] [--questions 8] [--repeat 3] [--side 448] [--checked 10]
                                   [--asked 500] [--pictures 1000] [--device cpu] [--checkpoint FOLDER]
                                   [--json benchmarks/results/ask.json]

A checkpoint of a published shape with random weights stands in for a real one (2b: 4.4 GB of disk, 10 GB of memory);
``--checkpoint`` takes one that `real_shape.py` made before. The ways take turns in each round, in one process with the
same threads:

    split           features from the store, what the questions begin with computed once, all answered together
    split, exact    features from the store, each question in a pass of its own
    held            the unsplit model with the picture's features held by hand and handed in each time
    unsplit         the unsplit model as everybody runs it, picture and question each time

Tokens of "split, exact" and "held" must be those of "unsplit", or the exit code is 1. Those of "split" may differ,
because its sums run in another order: random weights make nearly flat logits, so the share that is equal is told twice,
here and over ``--asked`` questions of the bundled checkpoint's evaluation, where it counts. Of a chat, the time to the
first token of a follow-up is compared. Twenty checks of each of ``--checked`` pictures are read in one pass a picture,
features fetched and results put into the store; the unsplit model's time for them is that of its one-token answers, by
their number, and its logits say whether the probabilities are right. Of what is kept of prompts, the most is compared
with its bound while ``--pictures`` are asked about at random. How long 1, 2, 4 ... questions take is told for a chart:
`benchmarks/qa/tables.py` puts both into the README. A missed goal is only printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import ImageChops
from transformers import AutoModelForImageTextToText
from transformers.modeling_outputs import BaseModelOutputWithPooling

from benchmarks.common import real_shape
from benchmarks.common.noise import picture
from benchmarks.common.report import at_least, at_most, tell, timed
from qsplit.media.images import Limits, open_picture, pixels_digest
from qsplit.mini import questions as phrases
from qsplit.mini import scenes
from qsplit.mini.evaluate import SCENE_KINDS, questions
from qsplit.models.checkpoint import Checkpoint
from qsplit.models.language.choice_scoring import Ways
from qsplit.models.language.kv_cache import PrefixCache
from qsplit.models.language.model import PREFIX_BYTES, LanguageModel, Sampling
from qsplit.models.language.prompts import Prompt
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.qa.checks import Verdict, check
from qsplit.qa.policy import Check, Policy
from qsplit.store.feature_store import FeatureStore
from qsplit.store.lookup import StoredPicture
from qsplit.store.records import FeatureRow, Skipped

TOKENS = (1, 16)
GOALS = {
    "1 token, split, of unsplit": at_least(15.0),
    "16 tokens, split, of unsplit": at_least(10.0),
    "first token of a follow-up, of unsplit's": at_most(0.15),
    "20 checks of each picture, split, of unsplit": at_least(15.0),
    "fetch and answer, over the answer alone": at_most(1.03),
    "answers equal, bundled checkpoint": at_least(0.99),
    "most that was kept, over its bound": at_most(1.0),
}
QUESTIONS = (
    "What is in the picture?", "How many people are there?", "Is it day or night?", "What colour is the car?",
    "Is there any text?", "Where was this taken?", "Is anybody smiling?", "What is in the background?",
)  # fmt: skip
CHECKS = tuple(Check(f"check {i}", f"{QUESTIONS[i % 8]} Answer yes or no ({i}).", ("yes", "no")) for i in range(20))
CLOSE = 0.01  # of probabilities whose sums run in another order, in bfloat16

Tokens = list[tuple[int, ...]]


class Bench:
    """Both models over a picture, and a store that holds its features and those of some others."""

    def __init__(self, folder: Path, checkpoint: Path, side: int, checked: int, device: str) -> None:
        self.picture = picture(side)
        vision = VisionEncoder.from_pretrained(str(checkpoint), device=device)
        self.uri = folder / "album.qsplit"
        store = FeatureStore(self.uri, create=True)
        rows = []
        for i in range(checked):
            shown = ImageChops.offset(self.picture, 13 * i)
            (features,) = vision.encode([shown])
            rows.append(FeatureRow(pixels_digest(shown), features, vision.provenance))
            shown.save(folder / f"{i}.png")
        store.put_features(rows)
        store.put_images([open_picture(folder / f"{i}.png", Limits()) for i in range(checked)])
        self.key = rows[0].key
        del vision
        self.language = LanguageModel.from_pretrained(str(checkpoint), device=device)
        self.language.checkpoint.fingerprint("language")  # hashed once a checkpoint, and remembered
        self.model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto", local_files_only=True)
        self.model.eval().to(device)
        self.processor = Checkpoint(checkpoint, "").image_processor()
        self.features = rows[0].features

    def fetch(self) -> Any:
        return FeatureStore(self.uri).get_features([self.key])[self.key]

    def split(self, asked: Sequence[str], n: int) -> Tokens:
        self.language.prefixes = PrefixCache(PREFIX_BYTES)  # nothing is known of an earlier round
        found = self.language.answers([self.fetch()], asked, sampling=Sampling(n))
        return [answer.tokens for answer in found]

    def split_exact(self, asked: Sequence[str], n: int) -> Tokens:
        features = self.fetch()
        return [self.language.answer([features], one, sampling=Sampling(n)).tokens for one in asked]

    def held(self, asked: Sequence[str], n: int) -> Tokens:
        prepared = self._prepared()
        with torch.no_grad():
            seen = self.model.get_image_features(**prepared, return_dict=True)
        output = BaseModelOutputWithPooling(pooler_output=seen.pooler_output)
        given = {"image_grid_thw": prepared["image_grid_thw"], "mm_encoder_outputs": {"image": output}}
        return [self._generate(one, n, given) for one in asked]

    def unsplit(self, asked: Sequence[str], n: int) -> Tokens:
        return [self._generate(one, n, self._prepared()) for one in asked]

    def checks(self) -> list[Verdict | Skipped]:
        """Twenty checks of each picture, none of which was ever made; those of the first come first."""
        self.language.prefixes = PrefixCache(PREFIX_BYTES)
        store = FeatureStore(self.uri)
        if "checks" in store.tables():
            store.clear("checks")
        images = sorted(store.images().values(), key=lambda image: not self.key.startswith(image.pixels_digest))
        pictures = [StoredPicture(image, None) for image in images]
        return list(check(store, self.language, Policy("bench", CHECKS), pictures))

    def wrong_checks(self, found: Sequence[Verdict | Skipped]) -> list[str]:
        """The first checks whose probabilities are not those of the unsplit model's logits."""
        wrong = []
        for one, verdict in list(zip(CHECKS, found, strict=False))[:2]:
            prompt = self.language.prompt([self.features], one.question)
            with torch.no_grad():
                said = self.model(**self._ids(prompt), **self._prepared()).logits[0, -1:]
            expected = Ways(one.choices, self.language.tokens_of).score([said], exact=True).probabilities
            if isinstance(verdict, Skipped) or abs(verdict.probabilities["yes"] - expected["yes"]) > CLOSE:
                wrong.append(f"{one.name}: {verdict} instead of {expected}")
        return wrong

    def _prepared(self) -> dict[str, Any]:
        made = self.processor(images=[self.picture], return_tensors="pt")
        return {name: made[name].to(self.model.device) for name in ("pixel_values", "image_grid_thw")}

    def _ids(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        ids = {"input_ids": prompt.input_ids, "mm_token_type_ids": prompt.mm_token_type_ids}
        return {name: value.to(self.model.device) for name, value in ids.items()}

    def _generate(
        self, question: str, n: int, given: dict[str, Any], history: Sequence[tuple[str, str]] = ()
    ) -> tuple[int, ...]:
        prompt = self.language.prompt([self.features], question, history=history)
        with torch.no_grad():
            ids = self._ids(prompt)
            mask = torch.ones_like(ids["input_ids"])
            out = self.model.generate(**ids, attention_mask=mask, max_new_tokens=n, do_sample=False, **given)
        return tuple(out[0, prompt.input_ids.shape[1] :].tolist())

    def follow_up(self) -> dict[str, float]:
        """Seconds to the first token of a second question, in a chat and by the unsplit model."""
        first, second, *_ = QUESTIONS
        self.language.prefixes = PrefixCache(PREFIX_BYTES)
        features = self.fetch()
        said = self.language.answer([features], first, sampling=Sampling(16), reuse=True)
        history = [(first, said.text)]
        chat = self.language.answer([features], second, history=history, sampling=Sampling(1), reuse=True)
        given = self._prepared()
        whole, _ = timed(self._generate, second, 1, given, history)
        return {"follow-up s, split": chat.prefill, "follow-up s, unsplit": whole}


def measure(bench: Bench, asked: Sequence[str], repeat: int) -> tuple[dict[str, float], list[str]]:
    """Seconds of each way for all questions, and what was wrong."""
    ways: dict[str, Callable[[Sequence[str], int], Tokens]] = {
        "split": bench.split,
        "split, exact": bench.split_exact,
        "held": bench.held,
        "unsplit": bench.unsplit,
    }
    taken: dict[tuple[str, int], list[float]] = {}
    said: dict[tuple[str, int], Tokens] = {}
    for way in ways.values():  # once, so that the first round is as warm as the others
        way(asked[:1], 1)
    for _ in range(repeat):
        for n in TOKENS:
            for name, way in ways.items():
                took, said[name, n] = timed(way, asked, n)
                taken.setdefault((name, n), []).append(took)
    figures = {f"{len(asked)} questions, {n} tokens s, {name}": median(each) for (name, n), each in taken.items()}
    wrong = [
        f"{name}, {n} tokens: other tokens than the unsplit model's"
        for name, n in said
        if name != "split" and said[name, n] != said["unsplit", n]
    ]
    for n in TOKENS:
        same = [a == b for a, b in zip(said["split", n], said["unsplit", n], strict=True)]
        figures[f"answers equal, random weights, {n} tokens"] = sum(same) / len(same)
    follow_ups = [bench.follow_up() for _ in range(repeat)]
    figures |= {name: median(one[name] for one in follow_ups) for name in follow_ups[0]}
    figures |= fetching(bench, asked[0], repeat)
    checked = [timed(bench.checks) for _ in range(repeat)]
    figures["20 checks of each picture s, split"] = median(seconds for seconds, _ in checked)
    figures["pictures checked"] = len(checked[-1][1]) / len(CHECKS)
    return figures | curve(bench, asked), wrong + bench.wrong_checks(checked[-1][1])


def curve(bench: Bench, asked: Sequence[str]) -> dict[str, float]:
    """Seconds of one-token answers to 1, 2, 4 ... questions about the picture."""
    figures, n = {}, 1
    while n <= len(asked):
        for name, way in (("split", bench.split), ("unsplit", bench.unsplit)):
            figures[f"curve s, {n}, {name}"], _ = timed(way, asked[:n], 1)
        n *= 2
    return figures


def fetching(bench: Bench, question: str, repeat: int) -> dict[str, float]:
    """One question answered from a store that was just opened, and over features already in memory."""
    features = bench.fetch()
    stored, present = [], []
    for _ in range(max(repeat, 5)):
        stored.append(timed(bench.split_exact, [question], TOKENS[-1])[0])
        answer = partial(bench.language.answer, [features], question, sampling=Sampling(TOKENS[-1]))
        present.append(timed(answer)[0])
    return {"from the store s": median(stored), "from memory s": median(present)}


def equal_answers(number: int) -> float:
    """The share of the bundled checkpoint's answers that sharing leaves as they are."""
    rng = np.random.default_rng(0)
    vision, language = VisionEncoder.from_pretrained(device="cpu"), LanguageModel.from_pretrained(device="cpu")
    sampling = Sampling(max_new_tokens=64)
    equal: list[bool] = []
    while len(equal) < number:
        scene = scenes.invent(rng, 168, 168)
        (features,) = vision.encode([scenes.draw(scene, rng)])
        asked = [one.text for _, one, _ in questions(0, rng, SCENE_KINDS, partial(phrases.about_scene, scene))]
        together = language.answers([features], asked, sampling=sampling)
        alone = [language.answer([features], one, sampling=sampling) for one in asked]
        equal += [a.tokens == b.tokens for a, b in zip(together, alone, strict=True)]
    return sum(equal) / len(equal)


def most_kept(number: int) -> dict[str, float]:
    """The most bytes that were kept of prompts, while as many questions as pictures are asked, each of any of them."""
    rng = np.random.default_rng(0)
    vision, language = VisionEncoder.from_pretrained(device="cpu"), LanguageModel.from_pretrained(device="cpu")
    made = vision.encode([scenes.draw(scenes.invent(rng, 112, 112), rng) for _ in range(number)])
    language.answer([made[0]], QUESTIONS[0], sampling=Sampling(1), reuse=True)
    bound = 20 * language.prefixes.nbytes
    language.prefixes = PrefixCache(bound)
    most = 0
    for i in rng.integers(number, size=number):
        language.answer([made[i]], QUESTIONS[i % len(QUESTIONS)], sampling=Sampling(1), reuse=True)
        most = max(most, language.prefixes.nbytes)
    return {"most bytes kept of prompts": most, "bound of it": bound}


def ratios(figures: dict[str, float], number: int) -> dict[str, float]:
    found = {}
    for n in TOKENS:
        unsplit = figures[f"{number} questions, {n} tokens s, unsplit"]
        for way in ("split", "split, exact", "held"):
            name = f"{n} token{'s' * (n > 1)}, {way}, of unsplit"
            found[name] = unsplit / figures[f"{number} questions, {n} tokens s, {way}"]
    each = figures[f"{number} questions, {TOKENS[0]} tokens s, unsplit"] / number
    checks = len(CHECKS) * figures["pictures checked"]
    found["20 checks of each picture, split, of unsplit"] = (
        checks * each / figures["20 checks of each picture s, split"]
    )
    found["first token of a follow-up, of unsplit's"] = figures["follow-up s, split"] / figures["follow-up s, unsplit"]
    found["fetch and answer, over the answer alone"] = figures["from the store s"] / figures["from memory s"]
    found["answers equal, bundled checkpoint"] = figures["answers equal, bundled checkpoint"]
    found["most that was kept, over its bound"] = figures["most bytes kept of prompts"] / figures["bound of it"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=real_shape.SHAPES, default="2b")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--side", type=int, default=448, help="Of the picture, in pixels.")
    parser.add_argument("--checked", type=int, default=10, help="Pictures with twenty checks each [10].")
    parser.add_argument("--asked", type=int, default=500, help="Questions to the bundled checkpoint [500].")
    parser.add_argument("--pictures", type=int, default=1000, help="Asked about at random [1000].")
    parser.add_argument("--device", default="cpu", help="Of both models [cpu].")
    parser.add_argument("--checkpoint", type=Path, help="A folder that real_shape.py made of that shape [a new one].")
    parser.add_argument("--folder", type=Path, help="Where to write [a temporary folder].")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    asked = [QUESTIONS[i % len(QUESTIONS)] + " " * (i // len(QUESTIONS)) for i in range(options.questions)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoint = options.checkpoint or real_shape.make(Path(folder) / options.shape, options.shape)
        bench = Bench(Path(folder), checkpoint, options.side, options.checked, options.device)
        figures, wrong = measure(bench, asked, options.repeat)
    figures["answers equal, bundled checkpoint"] = equal_answers(options.asked)
    figures |= most_kept(options.pictures)
    tell(figures, ratios(figures, len(asked)), GOALS, options.json)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
