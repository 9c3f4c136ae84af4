"""Find a checkpoint, tell its halves apart, fingerprint them, and load one of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoVideoProcessor, GenerationConfig

from qsplit import bundled
from qsplit.config import folder_or_id
from qsplit.errors import CheckpointError, UsageError
from qsplit.features.codecs import DTYPES
from qsplit.features.features import COMPUTE, PACKED, PLAIN, Encoder, Provenance
from qsplit.features.layouts import PATCHES
from qsplit.features.sizing import Resize
from qsplit.models.export_manifest import MANIFEST, Manifest
from qsplit.models.families import FAMILIES, HALVES, Family, Half, family_of
from qsplit.models.hub import INDEX, PROCESSOR, SINGLE, download, read_json
from qsplit.models.loading import load_half
from qsplit.models.retrieval_config import Retrieval
from qsplit.models.tensor_hashes import TensorDigests, locate_tensors, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["BUNDLED", "Checkpoint", "default_device", "has_bfloat16", "resolve"]

BUNDLED = "qsplit-mini"  # what the bundled checkpoint is called in the store and in answers
_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # as safetensors call them
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

ProcessorKind = Literal["image_processor", "video_processor"]
# Where each processor's settings are if they are not nested in `PROCESSOR`, in the order in which transformers looks.
_PROCESSOR_FILES: dict[ProcessorKind, tuple[str, ...]] = {
    "image_processor": ("preprocessor_config.json",),
    "video_processor": ("video_preprocessor_config.json", "preprocessor_config.json"),
}


@dataclass(frozen=True)
class Checkpoint:
    """A model folder of a known family, of which at least one half is present.

    ``name`` is the absolute folder or the hub id, ``revision`` the commit of a hub id. Nothing is read before it is
    asked for.
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
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # the last for a dtype's name
            raise CheckpointError(f"{self.folder / 'config.json'} cannot be read: {error}") from error

    @cached_property
    def family(self) -> Family:
        return family_of(read_json(self.folder / "config.json"), self.folder)

    @cached_property
    def retrieval(self) -> Retrieval:
        """How texts and pictures become comparable vectors."""
        return Retrieval.read(self.folder)

    @cached_property
    def dtype(self) -> str:
        """The dtype that both halves are run in by default: the config's, or the one most weights are stored in.

        Where halves in files of their own are stored differently, a config without a dtype gives each half its own.
        """
        name = self.stated_dtype or self._stored_dtype() or "float32"
        if name not in DTYPES:
            raise CheckpointError(f"{self.name} is in {name}; qsplit runs {', '.join(DTYPES)}.")
        return name

    @property
    def stated_dtype(self) -> str:
        """The dtype in the config, or in its text config, where published Qwen3-VL has it; empty if in neither."""
        return str(self.config.dtype or self.config.get_text_config().dtype or "").removeprefix("torch.")

    def _stored_dtype(self) -> str:
        """The dtype of most of the halves' numbers, from the headers of the files that are here; empty if of none."""
        here = {half: {name: at for name, at in self.tensors(half).items() if at[0].exists()} for half in HALVES}
        numbers: Counter[str] = Counter()
        for tensors in here.values():
            for tensor in locate_tensors(tensors).values():
                if tensor.dtype in _STORED:  # neither whole numbers nor eight bits
                    numbers[_STORED[tensor.dtype]] += prod(tensor.shape)
        return max(numbers, key=lambda name: (numbers[name], name), default="")

    @property
    def width(self) -> int:
        """The language model's hidden size, which is the width of a feature token."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def context(self) -> int:
        """How many tokens a prompt and its answer may have."""
        return int(self.config.get_text_config().max_position_embeddings)

    @property
    def levels(self) -> int:
        """The number of DeepStack levels beside the main tokens."""
        return len(getattr(self.config.vision_config, "deepstack_visual_indexes", ()))

    @property
    def merge_size(self) -> int:
        return self.family.merge_size(self.config)

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """Stored tensor name -> file name, of the whole checkpoint as its index tells it.

        A single file comes before an index, as in transformers. Empty for a half that is here without its weights,
        which a server has: its manifest says what they are.
        """
        single, index = self.folder / SINGLE, self.folder / INDEX
        if single.exists():
            return dict.fromkeys(stored_tensors(single), SINGLE)
        if index.exists():
            return dict(read_json(index)["weight_map"])
        if Manifest.read(self.folder) is not None:
            return {}
        raise CheckpointError(
            f"{self.folder} holds neither {SINGLE} nor {INDEX}.",
            fix="Only safetensors checkpoints are loaded; convert it with transformers' save_pretrained.",
        )

    def tensors(self, half: Half) -> dict[str, tuple[Path, str]]:
        """Canonical name -> (file, stored name) of one half's tensors; the files need not exist.

        Tensors of neither half, as of a trainer's value head, are in none.
        """
        return {name: where for name, where in self._named.items() if self.family.half_of(name) == half}

    @cached_property
    def _named(self) -> dict[str, tuple[Path, str]]:
        manifest = Manifest.read(self.folder)
        prefix = manifest.prefix if manifest else ""
        return {self.family.canonical(prefix + key): (self.folder / file, key) for key, file in self.weight_map.items()}

    def has(self, half: Half) -> bool:
        """Whether every file of a half is here."""
        files = {file for file, _ in self.tensors(half).values()}
        return bool(files) and all(file.exists() for file in files)

    def count(self, half: Half) -> int:
        """The number of parameters that a half's files hold; nothing but their headers is read."""
        return sum(prod(tensor.shape) for tensor in locate_tensors(self.tensors(half)).values())

    def fingerprint(self, half: Half) -> str:
        """sha256 over the sorted (name, dtype, shape, sha256 of bytes) of a half's tensors.

        For the vision half, also over the settings that change features and that no tensor's shape tells, such as
        the number of heads. It survives resharding and renaming. Where the half is absent, the folder's manifest is
        believed; raises `CheckpointError` where that is absent too.
        """
        if self.has(half):
            tensors = self.tensors(half)
            rows = TensorDigests(self.folder, self.cache).rows(tensors)
            if half == "vision":
                rows.append(["settings", self.family.vision_settings(self.config)])
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

    def check_weights(self, half: Half) -> None:
        """Read a half's weights whole, and raise `CheckpointError` if they are not those it is known by.

        A digest is remembered as long as the file system says that a file has not changed; a disk may say so wrongly.
        """
        if not self.has(half):
            return
        changed = TensorDigests(self.folder, self.cache).changed(self.tensors(half))
        if changed:
            raise CheckpointError(
                f"The bytes of {len(changed)} tensors in {self.folder} are not those that it was known by, the first "
                f"of them {changed[0]!r}; size and time of the file have not changed.",
                fix="Download or copy the checkpoint again, and then `qsplit verify --drift 10`: features that were "
                "made from these weights will differ.",
            )

    def image_processor(self) -> Any:
        """The checkpoint's own image processor, on the torchvision backend."""
        return self._processor(AutoImageProcessor, "image_processor", backend="torchvision")

    def video_processor(self) -> Any:
        """The checkpoint's own video processor."""
        return self._processor(AutoVideoProcessor, "video_processor")

    @cached_property
    def processor_config(self) -> dict[str, Any]:
        """The content of ``processor_config.json``; empty where there is none."""
        path = self.folder / PROCESSOR
        return read_json(path) if path.exists() else {}

    def processor_settings(self, kind: ProcessorKind) -> dict[str, Any] | None:
        """The stored settings of the image or the video processor, or None.

        transformers 5 nests them in ``processor_config.json`` and reads them from there first; earlier versions write a
        file for each. A video processor without settings of its own has those of images.
        """
        nested = self.processor_config.get(kind)
        if isinstance(nested, dict):
            return nested
        paths = (self.folder / name for name in _PROCESSOR_FILES[kind])
        return next((read_json(path) for path in paths if path.exists()), None)

    def _processor(self, auto: Any, kind: ProcessorKind, **options: str) -> Any:
        if self.processor_settings(kind) is None:
            (*_, name) = _PROCESSOR_FILES[kind]
            raise CheckpointError(
                f"{self.folder} has no {name}, so it is unknown how pictures are prepared for it.",
                fix=f"Copy that file, or a {PROCESSOR} with their settings, from the published checkpoint.",
            )
        try:
            return auto.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False, **options)
        except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
            raise CheckpointError(f"The processor of {self.folder} cannot be made: {error}") from error

    def processor_digest(self, resize: Resize) -> str:
        """sha256 over the canonical JSON of every setting that changes pixels, class and backend included.

        One digest covers pictures and videos: features of both are searched and asked side by side.
        """
        processors = [self.image_processor(), *([self.video_processor()] if self.family.clips else [])]
        settings = {
            "processors": [{"class": type(one).__name__, "settings": _settings(one)} for one in processors],
            "backend": "torchvision",
            "resize": resize.options(),
            **({"options": self.family.options} if self.family.options else {}),
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=int).encode()).hexdigest()

    def encoder(self, dtype: str = "", resize: Resize | None = None, compute: str = PLAIN) -> Encoder:
        """The identity of this checkpoint's vision half, run in ``dtype`` (its own if empty).

        Raises `UsageError` for a dtype and a way of computing that there is not, and where pictures are shown in
        pieces, which their processor sizes, for sizes and for packing.
        """
        if compute not in COMPUTE:
            raise UsageError(f"There is no way of computing {compute!r}.", fix=f"Choose {' or '.join(COMPUTE)}.")
        if self.family.layout != PATCHES:
            self._check_pieces(resize or Resize(), compute)
        return Encoder(
            vision_weights=self.fingerprint("vision"),
            processor=self.processor_digest(resize or Resize()),
            dtype=_known_dtype(dtype or self.dtype),
            width=self.width,
            levels=self.levels,
            merge_size=self.merge_size,
            layout=self.family.layout,
            compute=compute,
        )

    def provenance(self, *, device: str = "", attention: str = "") -> Provenance:
        """Who makes features with this checkpoint here: its names, and the versions of what is installed."""
        return Provenance(
            model_id=self.name,
            model_revision=self.revision,
            device=device,
            attention=attention,
            **{name: version(name) for name in ("torch", "transformers", "torchvision", "pillow")},
        )

    def _check_pieces(self, resize: Resize, compute: str) -> None:
        """Refuse what cannot be asked of a family that cuts pictures into pieces."""
        what = f"{self.name}: a {self.family.model_type} cuts them into pieces of one size."
        if resize.options():
            fix = "Leave --min-pixels, --max-pixels, --resized-height and --resized-width out."
            raise UsageError(f"Pictures cannot be resized for {what}", fix=fix)
        if compute == PACKED:
            raise UsageError(f"Pictures cannot be packed for {what}", fix=f"Compute {PLAIN}.")

    def load(
        self, half: Half, *, dtype: str = "", device: str = "cpu", attention: str | None = None
    ) -> PreTrainedModel:
        """The model class with one half's modules and weights, in eval mode on ``device``.

        Raises `CheckpointError` naming the first missing, unexpected or misshapen tensor of the half.
        """
        dtype = _known_dtype(dtype or self.dtype)
        model: PreTrainedModel = load_half(
            self.family,
            half,
            self.config,
            self.tensors(half),
            dtype=getattr(torch, dtype),
            attention=attention,
            name=self.name,
        )
        if half == "language" and (self.folder / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(self.folder)
        model.to(device)  # type: ignore[arg-type]  # its decorated signature hides that of torch
        model.eval()
        return model


def resolve(model: str, half: Half, *, revision: str = "", cache: str = "~/.cache/qsplit") -> Checkpoint:
    """A checkpoint from a folder, a hub id, or (for an empty name) the one bundled with qsplit.

    From the hub, only the shards that hold the wanted half are downloaded. Raises `CheckpointError`.
    """
    where = Path(cache).expanduser()
    if model in ("", BUNDLED):
        return Checkpoint(bundled.checkpoint(), name=BUNDLED, cache=where)
    name = folder_or_id(model)
    if Path(name).is_dir():
        return Checkpoint(Path(name), name=name, cache=where)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise CheckpointError(f"{model!r} is neither a folder nor a hub id such as Qwen/Qwen2-VL-2B-Instruct.")
    folder = download(model, revision, half)
    return Checkpoint(folder, name=model, revision=folder.name, cache=where)


def _refuse_unsafe(folder: Path) -> None:
    """Refuse a folder that can be read only by unpickling or by running its code.

    Nothing is unpickled and no such code runs in any case. Beside weights in safetensors, pickles are leftovers of a
    trainer or a second form of the weights; beside a known type, remote code is for earlier versions of transformers.
    """
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles and not any(folder.glob("*.safetensors")) and not (folder / MANIFEST).exists():
        raise CheckpointError(
            f"{folder} holds no safetensors file but {pickles[0]}, a pickle, which could run any code when loaded.",
            fix="Convert it with transformers' save_pretrained, which writes safetensors.",
        )
    config = folder / "config.json"
    if not config.exists() or read_json(config).get("model_type") in FAMILIES:
        return
    for path in sorted(folder.glob("*config.json")):
        if "auto_map" in read_json(path):
            raise CheckpointError(
                f"{path} asks for code from the checkpoint (auto_map), which qsplit never runs.",
                fix=f"Use a checkpoint of type {', '.join(FAMILIES)}.",
            )


def _settings(processor: Any) -> dict[str, Any]:
    """The settings of a processor, without the names of remote code that could have made one."""
    return {name: value for name, value in processor.to_dict().items() if name != "auto_map"}


def _known_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; qsplit runs {', '.join(DTYPES)}.")
    return dtype


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16; one that has not takes fifty times as long as in float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  # no public name tells it


def default_device() -> str:
    """The best device present: cuda, then mps, then cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
