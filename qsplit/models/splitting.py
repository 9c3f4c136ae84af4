"""Both halves of a checkpoint as folders of their own, each with what it needs and which other half it belongs to.

The tensors' bytes are copied as they are, piece by piece, and hashed again where they arrived: a half has the
fingerprint that it had in the whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qsplit.errors import CheckpointError, UsageError
from qsplit.models.checkpoint import Checkpoint, resolve
from qsplit.models.export_manifest import MANIFEST, Manifest
from qsplit.models.families import HALVES, Half
from qsplit.models.hub import INDEX, PROCESSOR, SINGLE, SMALL_FILES, read_json
from qsplit.models.language.model import LanguageModel
from qsplit.models.probe import make_probe, write_probe
from qsplit.models.tensor_hashes import StoredTensor, header, locate_tensors, pieces
from qsplit.models.vision.encoder import VisionEncoder

__all__ = ["Exported", "Split", "probe", "split"]

_VISION_FILES = ("config.json", "*preprocessor_config.json", PROCESSOR, "LICENSE*")  # whoever looks needs no words


@dataclass(frozen=True, slots=True)
class Exported:
    """One half: its folder, its parameters, and the bytes of all its files; ``written`` now, or there already."""

    half: Half
    folder: str
    parameters: int
    bytes: int
    written: bool


@dataclass(frozen=True, slots=True)
class Split:
    """``bytes`` are those of the whole checkpoint's weights and settings."""

    model: str
    bytes: int
    halves: list[Exported]


def split(model: str, out: Path, *, revision: str = "", cache: str = "~/.cache/qsplit") -> Split:
    """Write ``out/vision`` and ``out/language`` from a folder, a hub id or the bundled checkpoint.

    A half that is there already is checked and kept; one that was cut off is written anew. Raises `CheckpointError`,
    and `UsageError` for a folder that holds anything else, or too small a disk.
    """
    # Of a hub id, the second has both halves' files in its folder.
    _, checkpoint = (resolve(model, half, revision=revision, cache=cache) for half in HALVES)
    absent = [half for half in HALVES if not checkpoint.has(half)]
    if absent:
        raise CheckpointError(f"{checkpoint.name} has no {absent[0]} weights, so there is nothing to split.")
    out.mkdir(parents=True, exist_ok=True)
    vision, language = (checkpoint.fingerprint(half) for half in HALVES)
    exported = [
        _export(checkpoint, half, out / half, Manifest(vision, language, _prefix(checkpoint, half))) for half in HALVES
    ]
    weights = {file for half in HALVES for file, _ in checkpoint.tensors(half).values()}
    return Split(checkpoint.name, _bytes([*weights, *_small(checkpoint, "language")]), exported)


def probe(out: Path) -> Path:
    """Have the halves in ``out`` answer about a known picture, and write down what they say; see `qsplit.models.probe`.

    The halves are loaded one after the other. Raises `CheckpointError` for a model that says nothing clearly.
    """
    language = out / "language"
    made = make_probe(
        VisionEncoder.from_pretrained(str(out / "vision")), lambda: LanguageModel.from_pretrained(str(language))
    )
    return write_probe(made, language)


def _export(checkpoint: Checkpoint, half: Half, folder: Path, manifest: Manifest) -> Exported:
    written = not folder.exists()
    if written:
        draft = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)  # of a run that was cut off
        _check_room(checkpoint, half, folder.parent)
        draft.mkdir()
        _write(checkpoint, half, draft, manifest)
        if not _is_half(draft, half, manifest):
            raise CheckpointError(f"The {half} half of {checkpoint.name} did not arrive in {draft} as it was sent.")
        draft.replace(folder)
    elif not _is_half(folder, half, manifest):
        raise UsageError(
            f"{folder} is there already and is not the {half} half of {checkpoint.name}.",
            fix="Remove it, or name another folder.",
        )
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return Exported(half, str(folder.resolve()), checkpoint.count(half), _bytes(files), written)


def _prefix(checkpoint: Checkpoint, half: Half) -> str:
    """What the names of a half's tensors lose: a vision half of one module is a model of transformers by itself."""
    modules = checkpoint.family.modules(half)
    return f"{modules[0]}." if half == "vision" and len(modules) == 1 else ""


def _check_room(checkpoint: Checkpoint, half: Half, folder: Path) -> None:
    located = locate_tensors(checkpoint.tensors(half)).values()
    wanted, free = sum(one.nbytes for one in located), shutil.disk_usage(folder).free
    if wanted > free:
        raise UsageError(
            f"The {half} half of {checkpoint.name} takes {wanted / 1e9:.2f} GB; {folder} has {free / 1e9:.2f} GB free.",
            fix="Make room, or name a folder on another disk.",
        )


def _write(checkpoint: Checkpoint, half: Half, folder: Path, manifest: Manifest) -> None:
    """One file for each of the checkpoint's that holds something of the half."""
    for path in _small(checkpoint, half):
        shutil.copy(path, folder / path.name)
    if not checkpoint.stated_dtype:
        _state_dtype(folder / "config.json", checkpoint.dtype)
    tensors = checkpoint.tensors(half)
    located = locate_tensors(tensors)
    by_file: dict[Path, dict[str, StoredTensor]] = defaultdict(dict)
    for name, (file, key) in tensors.items():
        by_file[file][name.removeprefix(manifest.prefix) if manifest.prefix else key] = located[name]
    files = sorted(by_file)
    names = [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    if len(files) == 1:
        names = [SINGLE]
    else:
        weight_map = {key: name for file, name in zip(files, names, strict=True) for key in by_file[file]}
        total = sum(one.nbytes for one in located.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for file, name in zip(files, names, strict=True):
        _copy_tensors(file, by_file[file], folder / name)
    manifest.write(folder)


def _state_dtype(config: Path, dtype: str) -> None:
    """Have a half's config state the dtype of the whole, which the half's own weights may not show."""
    config.write_text(json.dumps(read_json(config) | {"dtype": dtype}, indent=2) + "\n")


def _small(checkpoint: Checkpoint, half: Half) -> Sequence[Path]:
    """The settings that go with a half; the language half has those of pictures too, which its features depend on."""
    patterns = _VISION_FILES if half == "vision" else SMALL_FILES
    found = {path for pattern in patterns for path in checkpoint.folder.glob(pattern)}
    return sorted(path for path in found if path.name not in (INDEX, MANIFEST) and not path.name.startswith("."))


def _copy_tensors(source: Path, tensors: Mapping[str, StoredTensor], target: Path) -> None:
    """A safetensors file of some of another's tensors, in its order; no more than a piece of it is in memory."""
    ordered = sorted(tensors.items(), key=lambda item: item[1].begin)
    with target.open("wb") as writer:
        writer.write(header({name: (one.dtype, one.shape, one.nbytes) for name, one in ordered}))
        for _, one in ordered:
            for piece in pieces(source, one):
                writer.write(piece)
        writer.flush()
        os.fsync(writer.fileno())


def _is_half(folder: Path, half: Half, manifest: Manifest) -> bool:
    """Whether a folder holds what it is to hold, by its bytes."""
    wanted = manifest.vision_weights if half == "vision" else manifest.language_weights
    return Manifest.read(folder) == manifest and Checkpoint(folder, str(folder)).fingerprint(half) == wanted


def _bytes(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)
