"""The plainest server of an unsplit model, as a tutorial would write it, for `bench_serve` to be beside.

    python benchmarks/plain_server.py CHECKPOINT

takes one OpenAI-formed request at a time, looks at its picture, and answers. Its port is told on stdout.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import sys
from threading import Lock
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

__all__ = ["make"]


def make(checkpoint: str) -> FastAPI:
    app, turn = FastAPI(), Lock()
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto", local_files_only=True).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    pixels: Any = AutoImageProcessor.from_pretrained(checkpoint, local_files_only=True)
    placeholder = tokenizer.convert_ids_to_tokens(model.config.image_token_id)

    @app.post("/v1/chat/completions")
    def complete(asked: dict[str, Any]) -> dict[str, Any]:
        shown, said = asked["messages"][0]["content"]
        image = Image.open(io.BytesIO(base64.b64decode(shown["image_url"]["url"].partition(",")[2]))).convert("RGB")
        messages = [{"role": "user", "content": [{"type": "image"}, said]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        with turn, torch.no_grad():
            made = pixels(images=[image], return_tensors="pt")
            n = int(made["image_grid_thw"].prod()) // pixels.merge_size**2
            given = tokenizer(text.replace(placeholder, placeholder * n), return_tensors="pt")
            out = model.generate(
                **given,
                mm_token_type_ids=(given.input_ids == model.config.image_token_id).long(),
                pixel_values=made["pixel_values"],
                image_grid_thw=made["image_grid_thw"],
                max_new_tokens=asked["max_tokens"],
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = out.sequences[0, given.input_ids.shape[1] :]
        found = [float(row[0].float().log_softmax(-1)[token]) for row, token in zip(out.logits, tokens, strict=True)]
        message = {"role": "assistant", "content": tokenizer.decode(tokens, skip_special_tokens=True)}
        logprobs = {"content": [{"logprob": one} for one in found]}
        return {"choices": [{"index": 0, "message": message, "logprobs": logprobs}]}

    return app


def main() -> None:
    app = make(sys.argv[1])
    with socket.create_server(("127.0.0.1", 0)) as bound:
        print(json.dumps({"url": f"http://127.0.0.1:{bound.getsockname()[1]}"}), flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[bound])


if __name__ == "__main__":
    main()
