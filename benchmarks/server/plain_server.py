"""The plainest server of an unsplit model, as a tutorial would write it, for `bench_serve` to be beside.

    python -m benchmarks.server.plain_server CHECKPOINT

takes one OpenAI-formed request at a time, looks at its picture, and answers, token by token if that is asked for. Its
port is told on stdout.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import sys
from collections.abc import Iterator
from queue import Queue
from threading import Lock, Thread
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

__all__ = ["make"]


class Said(BaseStreamer):
    """Each token as it comes, and None at the end."""

    def __init__(self) -> None:
        self.tokens: Queue[int | None] = Queue()
        self._is_prompt = True

    def put(self, value: Any) -> None:
        if not self._is_prompt:
            self.tokens.put(int(value[0]))
        self._is_prompt = False

    def end(self) -> None:
        self.tokens.put(None)


def make(checkpoint: str) -> FastAPI:
    app, turn = FastAPI(), Lock()
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto", local_files_only=True).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    pixels: Any = AutoImageProcessor.from_pretrained(checkpoint, local_files_only=True)
    placeholder = tokenizer.convert_ids_to_tokens(model.config.image_token_id)

    def text_of(message: dict[str, Any]) -> str:
        content = message["content"]
        return content if isinstance(content, str) else content[-1]["text"]

    def generated(asked: dict[str, Any], streamer: Any = None) -> tuple[list[int], list[float]]:
        """The tokens of an answer, and the logarithms of their chances."""
        url = asked["messages"][0]["content"][0]["image_url"]["url"]
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
        messages = [
            {"role": one["role"], "content": [{"type": "text", "text": text_of(one)}]} for one in asked["messages"]
        ]
        messages[0]["content"].insert(0, {"type": "image"})
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
                streamer=streamer,
            )
        tokens = out.sequences[0, given.input_ids.shape[1] :].tolist()
        found = [float(row[0].float().log_softmax(-1)[token]) for row, token in zip(out.logits, tokens, strict=True)]
        return tokens, found

    @app.post("/v1/chat/completions")
    def complete(asked: dict[str, Any]) -> Any:
        if asked.get("stream"):
            said = Said()
            Thread(target=generated, args=(asked, said)).start()
            return StreamingResponse(events(said), media_type="text/event-stream")
        tokens, found = generated(asked)
        message = {"role": "assistant", "content": tokenizer.decode(tokens, skip_special_tokens=True)}
        logprobs = {"content": [{"logprob": one} for one in found]}
        return {"choices": [{"index": 0, "message": message, "logprobs": logprobs}]}

    def events(said: Said) -> Iterator[str]:
        for token in iter(said.tokens.get, None):
            chunk = {"choices": [{"index": 0, "delta": {"content": tokenizer.decode([token])}}]}
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"

    return app


def main() -> None:
    app = make(sys.argv[1])
    with socket.create_server(("127.0.0.1", 0)) as bound:
        print(json.dumps({"url": f"http://127.0.0.1:{bound.getsockname()[1]}"}), flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[bound])


if __name__ == "__main__":
    main()
