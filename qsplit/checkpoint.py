"""Find a checkpoint, tell its halves apart, fingerprint them, and load one of them strictly.

A half is the checkpoint's own class with the other half's modules deleted before any weight is read: the model is
built on the meta device, so what is deleted never takes memory, and only the wanted half's tensors are opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoImageProcessor, GenerationConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from qsplit import mini
from qsplit.digests import TensorDigests, stored_tensors
from qsplit.errors import CheckpointError, UsageError
from qsplit.features import DTYPES, Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "BUNDLED",
    "FAMILIES",
    "Checkpoint",
    "Family",
    "Half",
    "Manifest",
    "Resize",
    "default_device",
    "files_of_half",
    "resolve",
]

Half = Literal["vision", "language"]

BUNDLED = "qsplit-mini"  # what the bundled checkpoint is called in the store and in answers
MANIFEST = "qsplit.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "LICENSE*"]


@dataclass(frozen=True, slots=True)
class Family:
    """Which class a checkpoint loads with, and which of its modules make up each half."""

    class_name: str
    vision: tuple[str, ...] = ("model.visual",)
    language: tuple[str, ...] = ("model.language_model", "lm_head")

    def modules(self, half: Half) -> tuple[str, ...]:
        return self.vision if half == "vision" else self.language

    def canonical(self, key: str) -> str:
        """The name of a stored tensor in today's class; published Qwen2-VL files carry older ones."""
        for renaming in get_checkpoint_conversion_mapping(self.class_name) or ():
            key, _ = renaming.rename_source_key(key)
        return key

    def half_of(self, canonical: str) -> Half:
        for half in ("vision", "language"):
            if any(canonical.startswith(f"{module}.") for module in self.modules(half)):
                return half
        raise CheckpointError(f"Tensor {canonical!r} belongs to neither half of a {self.class_name}.")


FAMILIES = {
    "qwen2_vl": Family("Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": Family("Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": Family("Qwen3VLForConditionalGeneration"),
}


@dataclass(frozen=True, slots=True)
class Resize:
    """The per-picture sizes of qwen-vl-utils' messages; all None leaves sizing to the checkpoint's processor.

    ``min_pixels`` and ``max_pixels`` bound height x width after resizing; ``resized_height`` and ``resized_width``,
    given together, fix them (rounded to whole tokens).
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, but must be at least 1.")
        if (self.resized_height is None) != (self.resized_width is None):
            raise UsageError("resized_height and resized_width must be given together.")

    def options(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an exported half says of the checkpoint it was cut from (``qsplit.json``)."""

    vision_weights: str
    language_weights: str
    version: int = 1

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest in a folder, or None; raises `CheckpointError` if it is there and makes no sense."""
        path = folder / MANIFEST
        if not path.exists():
            return None
        try:
            manifest = cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is no qsplit manifest: {error}.") from error
        if manifest.version != 1:
            raise CheckpointError(f"{path} has version {manifest.version}; this qsplit reads version 1.")
        return manifest


@dataclass(frozen=True)
class Checkpoint:
    """A model folder of a known family, of which at least one half is present.

    ``name`` is the absolute folder or the hub id, ``revision`` the commit of a hub id. Nothing is read before it is asked for.
    """

    folder: Path
    name: str
    revision: str = ""
    cache: Path = Path("~/.cache/qsplit")

    def __post_init__(self) -> None:
        _refuse_unsafe(self.folder)

    @cached_property
    def config(self) -> Any:
        try:
            return AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.folder / 'config.json'} cannot be read: {error}") from error

    @cached_property
    def family(self) -> Family:
        return _family(_read_json(self.folder / "config.json"), self.folder)

    @property
    def dtype(self) -> str:
        """The dtype that the checkpoint asks to be run in."""
        name = str(self.config.dtype or "float32").removeprefix("torch.")
        if name not in DTYPES:
            raise CheckpointError(f"{self.name} is in {name}; qsplit runs {', '.join(DTYPES)}.")
        return name

    @property
    def width(self) -> int:
        """The language model's hidden size, which is the width of a feature token."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def levels(self) -> int:
        """The number of DeepStack levels beside the main tokens."""
        return len(getattr(self.config.vision_config, "deepstack_visual_indexes", ()))

    @property
    def merge_size(self) -> int:
        return int(self.config.vision_config.spatial_merge_size)

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """Stored tensor name -> file name, of the whole checkpoint as its index tells it."""
        index = self.folder / INDEX
        if index.exists():
            return dict(_read_json(index)["weight_map"])
        single = self.folder / SINGLE
        if not single.exists():
            raise CheckpointError(
                f"{self.folder} holds neither {SINGLE} nor {INDEX}.",
                fix="Only safetensors checkpoints are loaded; convert it with transformers' save_pretrained.",
            )
        return dict.fromkeys(stored_tensors(single), SINGLE)

    def tensors(self, half: Half) -> dict[str, tuple[Path, str]]:
        """Canonical name -> (file, stored name) of one half's tensors; the files need not exist."""
        named = {self.family.canonical(key): (self.folder / file, key) for key, file in self.weight_map.items()}
        return {name: where for name, where in named.items() if self.family.half_of(name) == half}

    def has(self, half: Half) -> bool:
        """Whether every file of a half is here."""
        files = {file for file, _ in self.tensors(half).values()}
        return bool(files) and all(file.exists() for file in files)

    def count(self, half: Half) -> int:
        """The number of parameters that a half's files hold; nothing but their headers is read."""
        headers = {file: stored_tensors(file) for file in {file for file, _ in self.tensors(half).values()}}
        return sum(prod(headers[file][key].shape) for file, key in self.tensors(half).values())

    def fingerprint(self, half: Half) -> str:
        """sha256 over the sorted (name, dtype, shape, sha256 of bytes) of a half's tensors.

        It survives resharding and renaming. Where the half is absent, the folder's manifest is believed; raises
        `CheckpointError` where that is absent too.
        """
        if self.has(half):
            tensors = self.tensors(half)
            rows = TensorDigests(self.folder, self.cache).rows(tensors)
            return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
        manifest = Manifest.read(self.folder)
        if manifest is None:
            raise CheckpointError(
                f"{self.folder} has no {half} weights and no {MANIFEST}, so it is unknown which {half} half it "
                "belongs to.",
                fix="Use the complete checkpoint, or vouch for the features with --trust-encoder ID (`qsplit status` "
                "lists the ids).",
            )
        return manifest.vision_weights if half == "vision" else manifest.language_weights

    def image_processor(self) -> Any:
        """The checkpoint's own image processor, on the torchvision backend."""
        if not (self.folder / "preprocessor_config.json").exists():
            raise CheckpointError(
                f"{self.folder} has no preprocessor_config.json, so it is unknown how pictures are prepared for it.",
                fix="Copy that file from the published checkpoint.",
            )
        try:
            return AutoImageProcessor.from_pretrained(
                self.folder, local_files_only=True, backend="torchvision", trust_remote_code=False
            )
        except (OSError, ValueError, TypeError, ImportError) as error:
            raise CheckpointError(f"The image processor of {self.folder} cannot be made: {error}") from error

    def processor_digest(self, resize: Resize) -> str:
        """sha256 over the canonical JSON of every setting that changes pixels, class and backend included."""
        processor = self.image_processor()
        settings = {
            "class": type(processor).__name__,
            "backend": "torchvision",
            "settings": processor.to_dict(),
            "resize": resize.options(),
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=int).encode()).hexdigest()

    def encoder(self, dtype: str = "", resize: Resize | None = None) -> Encoder:
        """The identity of this checkpoint's vision half, run in ``dtype`` (its own if empty)."""
        return Encoder(
            vision_weights=self.fingerprint("vision"),
            processor=self.processor_digest(resize or Resize()),
            dtype=dtype or self.dtype,
            width=self.width,
            levels=self.levels,
            merge_size=self.merge_size,
        )

    def load(
        self, half: Half, *, dtype: str = "", device: str = "cpu", attention: str | None = None
    ) -> PreTrainedModel:
        """The model class with one half's modules and weights, in eval mode on ``device``.

        Raises `CheckpointError` naming the first missing, unexpected or misshapen tensor of the half.
        """
        dtype = _known_dtype(dtype or self.dtype)
        tensors = self.tensors(half)
        what = f"{half} half of {self.name}"
        with ExitStack() as stack, _quiet():
            try:
                model, report = _half_class(self.family, half).from_pretrained(
                    None,
                    config=_half_config(self.config, half),
                    state_dict=_open(tensors, stack),
                    dtype=DTYPES[dtype],
                    attn_implementation=attention,
                    ignore_mismatched_sizes=True,  # they come back in the report, which names them
                    output_loading_info=True,
                )
            except (RuntimeError, ValueError, ImportError, SafetensorError) as error:
                raise CheckpointError(f"The {what} cannot be loaded: {error}") from error
        _check_report(report, tensors, what)
        if half == "language" and (self.folder / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(self.folder)
        return model.to(device).eval()  # type: ignore[no-any-return]  # transformers' from_pretrained is untyped


def resolve(model: str, half: Half, *, revision: str = "", cache: str = "~/.cache/qsplit") -> Checkpoint:
    """A checkpoint from a folder, a hub id, or (for an empty name) the one bundled with qsplit.

    From the hub, only the shards that hold the wanted half are downloaded. Raises `CheckpointError`.
    """
    where = Path(cache).expanduser()
    if model in ("", BUNDLED):
        return Checkpoint(mini.path(), name=BUNDLED, cache=where)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Checkpoint(folder.resolve(), name=str(folder.resolve()), cache=where)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise CheckpointError(f"{model!r} is neither a folder nor a hub id such as Qwen/Qwen2-VL-2B-Instruct.")
    folder = _download(model, revision, half)
    return Checkpoint(folder, name=model, revision=folder.name, cache=where)


def files_of_half(family: Family, weight_map: Mapping[str, str], half: Half) -> list[str]:
    """The shards of an index that hold at least one tensor of the half, sorted."""
    return sorted({file for key, file in weight_map.items() if family.half_of(family.canonical(key)) == half})


def _download(repo: str, revision: str, half: Half) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))

    try:
        folder = fetch(_SMALL_FILES)
        files = [SINGLE]
        if (folder / INDEX).exists():
            family = _family(_read_json(folder / "config.json"), folder)
            files = files_of_half(family, _read_json(folder / INDEX)["weight_map"], half)
        return fetch([*_SMALL_FILES, *files])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repo!r} is no folder here and cannot be downloaded: {error}",
            fix="Check the name and the connection, or give the path of a downloaded checkpoint.",
        ) from error


def _refuse_unsafe(folder: Path) -> None:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds {pickles[0]}, a pickle, which could run any code when loaded.",
            fix="Keep only the safetensors files in the folder.",
        )
    for path in (folder / "config.json", folder / "preprocessor_config.json", folder / "tokenizer_config.json"):
        if path.exists() and "auto_map" in _read_json(path):
            raise CheckpointError(f"{path} asks for code from the checkpoint (auto_map), which qsplit never runs.")


def _family(config: Mapping[str, Any], folder: Path) -> Family:
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(f"{folder} is of type {model_type!r}; qsplit splits {', '.join(FAMILIES)}.")
    return FAMILIES[model_type]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object.")
    return content


def _known_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; qsplit runs {', '.join(DTYPES)}.")
    return dtype


def _half_class(family: Family, half: Half) -> Any:
    """A subclass of the family's class that deletes the other half's modules as soon as they exist (on meta)."""
    parent = getattr(transformers, family.class_name)
    other = family.modules("language" if half == "vision" else "vision")

    def __init__(self: Any, config: Any) -> None:
        parent.__init__(self, config)
        for path in other:
            owner, _, name = path.rpartition(".")
            delattr(self.get_submodule(owner), name)

    members: dict[str, Any] = {"__init__": __init__, "__module__": __name__}
    if half == "vision":
        members["_tied_weights_keys"] = {}  # both ends of the tie are gone
    return type(f"{parent.__name__}{half.title()}Half", (parent,), members)


def _half_config(config: Any, half: Half) -> Any:
    config = deepcopy(config)
    if half == "vision":
        config.tie_word_embeddings = False
        config.get_text_config().tie_word_embeddings = False
    return config


def _open(tensors: Mapping[str, tuple[Path, str]], stack: ExitStack) -> dict[str, Any]:
    """Canonical name -> safetensors slice, read only when the model takes it."""
    readers: dict[Path, Any] = {}
    for file in sorted({file for file, _ in tensors.values()}):
        try:
            readers[file] = stack.enter_context(safe_open(file, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{file} cannot be read: {error}.", fix="Copy or download that file again."
            ) from error
    held = {file: set(reader.keys()) for file, reader in readers.items()}
    for name, (file, key) in tensors.items():
        if key not in held[file]:
            raise CheckpointError(
                f"Tensor {name!r} is missing: {file} does not hold {key!r} although the index says so."
            )
    return {name: readers[file].get_slice(key) for name, (file, key) in tensors.items()}


def _check_report(report: Mapping[str, Any], tensors: Iterable[str], what: str) -> None:
    """`from_pretrained` only logs what it did not find, and fills it with random numbers; here it is an error."""
    for problem in ("missing", "unexpected", "mismatched"):
        names = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in report[f"{problem}_keys"])
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise CheckpointError(f"The {what} has a {problem} tensor: {names[0]!r}{more}.")
    if report["error_msgs"] or not tensors:
        raise CheckpointError(f"The {what} cannot be loaded: {'; '.join(report['error_msgs']) or 'no tensors'}.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' load report and progress bar: what they would say is raised as an error instead."""
    logger = transformers.logging
    level, bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity_error()
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.set_verbosity(level)
        if bars:
            logger.enable_progress_bar()


def default_device() -> str:
    """The best device present: cuda, then mps, then cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
