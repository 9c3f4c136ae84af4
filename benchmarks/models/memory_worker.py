"""One way of loading and running a checkpoint, in a process of its own, for `bench_memory`.

    python -m benchmarks.models.memory_worker WAY JOB.json

writes what was measured to ``JOB.row``.
"""

# ruff: noqa: PLC0415  # each worker imports what its way needs and no more: that is what is measured

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common.noise import picture

if TYPE_CHECKING:
    import torch

GIB = 2**30
PAGE = 4096
STREAM = 8 * 1024**2
QUESTION = "What is in the picture?"
MODEL = "Qwen2VLForConditionalGeneration"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker process is told; ``ranges`` are the vision half's (file, begin, end) in bytes."""

    folder: str
    store: str
    image_size: int
    max_new_tokens: int
    ranges: tuple[tuple[str, int, int], ...]

    @property
    def cache(self) -> str:
        return f"{self.store}.cache"


@dataclass(slots=True)
class Probe:
    """Seconds of each stage, and the memory after it: anonymous and of mapped files."""

    seconds: dict[str, float] = field(default_factory=dict)
    anonymous: dict[str, float] = field(default_factory=dict)
    file_backed: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def mark(self, stage: str) -> None:
        """End a stage; what is done after the last one, such as comparing logits, counts nowhere."""
        self.seconds[stage] = time.perf_counter() - self.last
        ru_maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
        self.peaks = {"peak": _status("VmHWM"), "ru_maxrss": ru_maxrss}
        self.anonymous[stage] = _status("RssAnon")
        self.file_backed[stage] = _status("RssFile")
        self.last = time.perf_counter()

    def row(self, found: Mapping[str, Any]) -> Row:
        return {
            **self.peaks,
            "seconds": self.seconds,
            "anonymous": self.anonymous,
            "file_backed": self.file_backed,
            **found,
        }


def _status(name: str) -> float:
    """A line of /proc/self/status, in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / GIB for line in lines if line.startswith(f"{name}:"))


def _import_transformers() -> None:
    """What every way needs: transformers imports a model's code at its first use, which is no part of loading
    weights.
    """
    import transformers

    for name in ("AutoImageProcessor", "AutoTokenizer", "Qwen2Tokenizer", "Qwen2VLImageProcessor", MODEL):
        getattr(transformers, name)


def imports(_: Job, probe: Probe) -> Row:
    _import_transformers()
    probe.mark("imports")
    return {}


def store_imports(_: Job, probe: Probe) -> Row:
    import qsplit.store.feature_store

    _import_transformers()
    probe.mark("imports")
    return {"module": qsplit.store.feature_store.__name__}


def vision(job: Job, probe: Probe) -> Row:
    encoder = _load_vision(job, probe)
    (features,) = encoder.encode([picture(job.image_size)])
    probe.mark("work")
    return {"features": _digest(features.to_torch()[0]), "n_tokens": len(features)}


def vision_first(job: Job, probe: Probe) -> Row:
    encoder = _load_vision(job, probe)
    (features,) = encoder.encode([picture(job.image_size)])
    peak = _status("VmHWM")
    from qsplit.media.images import pixels_digest
    from qsplit.store.feature_store import FeatureStore
    from qsplit.store.records import FeatureRow

    row = FeatureRow(pixels_digest(picture(job.image_size)), features, encoder.provenance)
    FeatureStore(job.store, create=True).put_features([row])
    probe.mark("work")
    return {"features": _digest(features.to_torch()[0]), "n_tokens": len(features), "peak_before_store": peak}


def vision_load(job: Job, probe: Probe) -> Row:
    return {"n_parameters": _load_vision(job, probe).n_parameters}


def _load_vision(job: Job, probe: Probe) -> Any:
    from qsplit.models.vision.encoder import VisionEncoder

    _import_transformers()
    probe.mark("imports")
    encoder = VisionEncoder.from_pretrained(job.folder, device="cpu", cache=job.cache)
    probe.mark("load")
    _touch(encoder._model, probe)  # noqa: SLF001  # the weights are no part of the interface
    return encoder


def language(job: Job, probe: Probe) -> Row:
    from qsplit.media.images import pixels_digest
    from qsplit.models.language.model import LanguageModel, Sampling
    from qsplit.store.feature_store import FeatureStore

    _import_transformers()
    probe.mark("imports")
    model = LanguageModel.from_pretrained(job.folder, device="cpu", cache=job.cache)
    probe.mark("load")
    _touch(model._model, probe)  # noqa: SLF001  # the weights are no part of the interface
    store = FeatureStore(job.store)
    (head,) = store.heads([pixels_digest(picture(job.image_size))])
    features = store.get_features([head.key])[head.key]
    answer = model.answer([features], QUESTION, sampling=Sampling(job.max_new_tokens))
    probe.mark("work")
    logits = model.logits(model.prompt([features], QUESTION))
    found = {"features": _digest(features.to_torch()[0]), "logits": _digest(logits)}
    return found | {"tokens": list(answer.tokens), "exact": answer.exact}


def unsplit(job: Job, probe: Probe) -> Row:
    import torch
    from transformers import AutoModelForImageTextToText

    _import_transformers()
    probe.mark("imports")
    model: Any = AutoModelForImageTextToText.from_pretrained(job.folder, dtype="auto", local_files_only=True)
    probe.mark("load")
    _touch(model, probe)
    seen: list[Any] = []
    model.model.visual.register_forward_hook(lambda _module, _inputs, out: seen.append(out.pooler_output))
    inputs = _prompt(job, model.config.image_token_id)
    out = model.generate(**inputs, do_sample=False, max_new_tokens=job.max_new_tokens)
    probe.mark("work")
    model.model.rope_deltas = None  # left over from the generation
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    found = {"features": _digest(seen[0]), "logits": _digest(logits)}
    return found | {"tokens": out[0, inputs["input_ids"].shape[1] :].tolist()}


def naive(job: Job, probe: Probe) -> Row:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig
    from transformers.models.qwen2_vl import modeling_qwen2_vl

    _import_transformers()
    probe.mark("imports")
    config = AutoConfig.from_pretrained(job.folder, local_files_only=True).vision_config
    vision_class: Any = modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel
    model = vision_class._from_config(config, dtype=torch.bfloat16)  # noqa: SLF001  # as the recipe has it
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(Path(job.folder).glob("*.safetensors")):
        weights |= load_file(file)
    model.load_state_dict({key.removeprefix("visual."): weights[key] for key in weights if key.startswith("visual.")})
    probe.mark("load")
    _touch(model, probe)
    made = _image_inputs(job)
    with torch.no_grad():
        out = model(made["pixel_values"].to(model.dtype), grid_thw=made["image_grid_thw"])
    probe.mark("work")
    return {"features": _digest(out.pooler_output)}


def read_whole(job: Job, probe: Probe) -> Row:
    """The vision half's bytes into one fresh buffer of their size."""
    buffer = memoryview(bytearray(sum(end - begin for _, begin, end in job.ranges)))
    filled = 0
    for file, begin, end in job.ranges:
        _read(file, begin, buffer[filled : filled + end - begin])
        filled += end - begin
    probe.mark("load")
    return {"bytes": filled}


def read_streamed(job: Job, probe: Probe) -> Row:
    """The vision half's bytes through one small buffer: what the files cost, with no memory to be made."""
    buffer = memoryview(bytearray(STREAM))
    for file, begin, end in job.ranges:
        for position in range(begin, end, STREAM):
            _read(file, position, buffer[: min(STREAM, end - position)])
    probe.mark("load")
    return {"bytes": sum(end - begin for _, begin, end in job.ranges)}


def _read(file: str, begin: int, into: memoryview) -> None:
    with Path(file).open("rb", buffering=0) as stream:
        stream.seek(begin)
        while len(into):
            into = into[stream.readinto(into) or len(into) :]


WORKERS: dict[str, Callable[[Job, Probe], Row]] = {
    "imports": imports,
    "store imports": store_imports,
    "vision, first": vision_first,
    "vision half": vision,
    "vision load": vision_load,
    "language half": language,
    "unsplit": unsplit,
    "naive": naive,
    "read whole": read_whole,
    "read streamed": read_streamed,
}


def _touch(model: Any, probe: Probe) -> None:
    """Read one byte of every page of the parameters, so that mapped weights are really in memory."""
    import torch

    total = sum(int(p.detach().flatten().view(torch.uint8)[::PAGE].sum()) for p in model.parameters())
    assert total > 0
    probe.mark("touch")


def _image_inputs(job: Job) -> Any:
    from transformers import AutoImageProcessor

    load: Callable[..., Any] = AutoImageProcessor.from_pretrained
    return load(job.folder, local_files_only=True)(images=[picture(job.image_size)], return_tensors="pt")


def _prompt(job: Job, image_token_id: int) -> dict[str, Any]:
    """The unsplit model's inputs, by transformers alone."""
    import torch
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(job.folder, local_files_only=True)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    made = _image_inputs(job)
    n_tokens = int(made["image_grid_thw"].prod()) // 4  # 2 x 2 patches to a token
    token = tokenizer.convert_ids_to_tokens(image_token_id)
    ids = tokenizer(text.replace(token, token * n_tokens), return_tensors="pt").input_ids
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == image_token_id).long(),
        "pixel_values": made["pixel_values"],
        "image_grid_thw": made["image_grid_thw"],
    }


def _digest(tokens: torch.Tensor) -> str:
    import torch

    return hashlib.sha256(tokens.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _work(name: str, job_file: Path) -> None:
    job = json.loads(job_file.read_text())
    probe = Probe()
    found = WORKERS[name](Job(**job), probe)
    job_file.with_suffix(".row").write_text(json.dumps(probe.row(found)))


if __name__ == "__main__":
    _work(sys.argv[1], Path(sys.argv[2]))
