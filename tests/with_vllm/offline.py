"""Answers a question about exported features with vLLM's own Python interface; prints the tokens.

python offline.py CHECKPOINT PROMPT_FILE FEATURES.safetensors...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from vllm import LLM, SamplingParams


def main() -> None:
    checkpoint, prompts, *files = sys.argv[1:]
    model = LLM(
        checkpoint, dtype="float32", enforce_eager=True, max_model_len=4096, enable_mm_embeds=True, max_num_seqs=8
    )
    prompt, asked = json.loads(Path(prompts).read_text())
    requests = []
    for path in files:
        with safe_open(path, framework="pt") as held:
            names = sorted(held.keys(), key=lambda name: (name != "tokens", name))  # the main tokens, then each level
            tensors = [held.get_tensor(name) for name in names]
            grid = json.loads(held.metadata()["grid_thw"])
        image = {"image_embeds": torch.cat(tensors, dim=1).float(), "image_grid_thw": torch.tensor([grid])}
        requests.append({"prompt": prompt, "multi_modal_data": {"image": image}})
    outputs = model.generate(requests, SamplingParams(temperature=0, max_tokens=asked))
    print("TOKENS", json.dumps([list(one.outputs[0].token_ids) for one in outputs]))


if __name__ == "__main__":  # the engine is another process, which imports this file
    main()
