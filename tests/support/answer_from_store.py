"""A new process for `test_split`: reads features from stores and answers with the language half alone.

Called with a JSON file: a list of {name, checkpoint, store, device, keys}; writes <file>.answers.json and the logits
beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.store.feature_store import FeatureStore

QUESTION = "What is it?"
TOKENS = 12


def main(plan: Path) -> None:
    answers, logits = {}, {}
    for case in json.loads(plan.read_text()):
        language = LanguageModel.from_pretrained(case["checkpoint"], device=case["device"])
        found = FeatureStore(case["store"]).get_features(case["keys"])
        features = [found[key] for key in case["keys"]]
        for n in (1, 2):
            name = f"{case['name']}-{n}"
            answer = language.answer(features[:n], QUESTION, sampling=Sampling(TOKENS))
            logits[name] = language.logits(language.prompt(features[:n], QUESTION)).contiguous()
            answers[name] = {"tokens": answer.tokens, "exact": answer.exact, **_nothing_of_vision(language)}
    save_file(logits, plan.with_suffix(".logits.safetensors"))
    plan.with_suffix(".answers.json").write_text(json.dumps(answers))


def _nothing_of_vision(language: LanguageModel) -> dict[str, Any]:
    return {
        "vision parameters": language.n_vision_parameters,
        "vision code": "qsplit.models.vision.encoder" in sys.modules,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
