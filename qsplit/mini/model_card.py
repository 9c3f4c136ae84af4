"""The model card of the bundled checkpoint: ``python -m qsplit.mini.model_card`` writes it from the evaluation's
figures."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from qsplit import bundled
from qsplit.mini import download
from qsplit.mini.build import SPECIAL_TOKENS, TEXT, VISION
from qsplit.mini.packing import IMAGE_PROMPT, TEXT_PROMPT

__all__ = ["EVALUATION", "card", "write_report"]

EVALUATION = "evaluation.json"

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
language: [en, zh]
---

# qsplit mini

A Qwen2-VL checkpoint in miniature, trained from scratch on two CPU cores: the class `Qwen2VLForConditionalGeneration`,
with a tokenizer, processor, chat template and generation settings of the same form as the published ones, small enough
to ship inside a Python package. It lets every command of `qsplit` run with no network and no accelerator, on answers
that can be checked. It knows the questions below, in English and Chinese, and little else: for real work name a real
checkpoint.

| half | parameters |
| --- | ---: |
| vision | {vision:,} |
| language | {language:,} |
| both | {total:,} |

- Vision: {depth} blocks of width {embed_dim}, patches of 14 x 14 pixels, 2 x 2 patches to a token, 56 x 56 to 224 x 224
  pixels a picture: 4 to 64 tokens of width {hidden_size}.
- Language: {num_hidden_layers} layers of width {hidden_size}, {num_attention_heads} heads over {num_key_value_heads} \
key-value heads, embeddings tied to the output.
- Tokenizer: byte-level BPE, {vocab_size:,} entries with Qwen2-VL's {specials} special tokens last, trained on English
  and Chinese sentences written for it. Any text survives it, up to Unicode NFC.
- Weights: bfloat16, one safetensors file.

```python
from qsplit import bundled
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(bundled.checkpoint())
processor = AutoProcessor.from_pretrained(bundled.checkpoint())
```

## What it was measured to do

On pictures it was not trained on. *Right* is the share of questions answered word for word as expected, over phrasings
that training used and over phrasings *held out* from it; *commonest* is what always giving the commonest answer to each
kind of question would get; *other picture* asks the same questions over the features of another picture: what is left
there comes from the question alone.

{rows}

- `scenes`: drawn shapes on plain, striped, shaded or scratched backgrounds.
- `photographs`: crops of photographs from packages that training never read, turned, relit, recoloured, blurred or made
  grey as far as the question needs. A label that would be a matter of taste is not asked for. `cannot tell` asks what
  the picture holds no answer to.
- `garments`: the official test split of Fashion-MNIST, enlarged three times to 84 x 84 pixels.
- `samples`: the same edits of the photographs that ship with the package.

**Text to picture**, {retrieval[n]:,} scenes of different descriptions, phrased as training never did: the state before
the last layer after `{image_prompt}` against the same state after the description and `{text_prompt}`.

| | recall@1 | recall@10 |
| --- | ---: | ---: |
| English | {retrieval[recall@1 en]:.1%} | {retrieval[recall@10 en]:.1%} |
| Chinese | {retrieval[recall@1 zh]:.1%} | {retrieval[recall@10 zh]:.1%} |

**Copies** of held-out photographs (cropped, recoloured, bordered, written on, shrunk, saved badly, one to three at
once): {copies[queries]:,} queries against {copies[library]:,} pictures, a third of the queries with no original among
them, micro average precision.

| pooled vector | 64-bit pHash | 64-bit dHash |
| ---: | ---: | ---: |
| {copies[pooled]:.3f} | {copies[pHash]:.3f} | {copies[dHash]:.3f} |

**Speed**, for information, on {speed[threads]} CPU threads, medians: {speed[encode ms]:.0f} ms to encode a picture of
224 x 168 pixels, {speed[answer ms]:.0f} ms for a short answer about it.

## How it was trained

`python -m qsplit.mini.train` fetches what it reads, trains, and measures. Two stages: first the vision half alone
learns labels that the pictures come with, then both halves learn questions, answers and labels of the things that a
question names; Muon for the matrices of the layers and AdamW for the rest. A run can go on from an earlier one's
checkpoint (`--start`). These were made one after another:

{runs}

`python -m qsplit.mini.evaluate` measures it again.

LICENSE: Apache-2.0. Nothing in this folder was taken from another checkpoint, and no picture of these packages is in
it. What training and evaluation read:

{licences}
"""


def table(rows: list[dict[str, Any]]) -> str:
    """One line a skill: both languages, both ways of phrasing, and the baselines over all of them."""
    skills: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        skills[row["part"], row["skill"]].append(row)
    lines = [
        "| | skill | questions | English | held out | Chinese | held out | commonest | other picture |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (part, skill), members in skills.items():
        n = sum(row["n"] for row in members)
        right = {(row["language"], row["phrasing"]): row["right"] for row in members}
        cells = [
            f"{right[language, way]:.1%}" if (language, way) in right else ""
            for language in ("en", "zh")
            for way in ("trained", "held out")
        ]
        majority = sum(row["majority"] * row["n"] for row in members) / n
        other = sum(row["other_picture"] * row["n"] for row in members) / n
        lines.append(f"| {part} | {skill} | {n:,} | {' | '.join(cells)} | {majority:.1%} | {other:.1%} |")
    return "\n".join(lines)


def runs(training: list[dict[str, Any]]) -> str:
    """One line a training run, in their order."""
    lines = [
        "| run | steps of the vision half | of both halves | rate | the vision half's share of it | workers | seed |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, recipe in enumerate(training, 1):
        lines.append(
            f"| {number} | {recipe['vision_steps']:,} | {recipe['joint_steps']:,} | {recipe['rate']} "
            f"| {recipe['vision_share']} | {recipe['workers']} | {recipe['seed']} |"
        )
    return "\n".join(lines)


def card(report: dict[str, Any]) -> str:
    """The card's text from what `qsplit.mini.evaluate` found."""
    vision, language = report["parameters"]["vision"], report["parameters"]["language"]
    facts = VISION | TEXT | {"vision": vision, "language": language, "total": vision + language}
    return CARD.format_map(
        facts
        | {
            "specials": len(SPECIAL_TOKENS), "rows": table(report["rows"]), "retrieval": report["retrieval"],
            "copies": report["copies"], "speed": report["speed"], "runs": runs(report["training"]),
            "image_prompt": IMAGE_PROMPT, "text_prompt": TEXT_PROMPT.strip(), "licences": download.licences(),
        }
    )  # fmt: skip


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Keep the figures beside the weights, and the card that shows them."""
    (folder / EVALUATION).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(report), encoding="utf-8")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), default=bundled.checkpoint())
def main(folder: Path) -> None:
    """Write FOLDER's README.md from its evaluation.json."""
    write_report(folder, json.loads((folder / EVALUATION).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
