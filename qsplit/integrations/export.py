"""Stored features as files for other programs: safetensors, or the parts of a chat that a vLLM server takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from qsplit.errors import CorruptStore, InvalidFeatures, NotIndexed, UsageError
from qsplit.features.codecs import as_bytes
from qsplit.features.features import Features
from qsplit.integrations.vllm.embeds import image_part
from qsplit.models.tensor_hashes import header
from qsplit.store.feature_store import FeatureStore
from qsplit.store.lookup import StoredPicture
from qsplit.store.records import FeatureHead, Skipped
from qsplit.store.row_ids import check_id

__all__ = ["FORMATS", "Format", "Written", "export"]

Format = Literal["safetensors", "vllm"]
FORMATS: tuple[Format, ...] = ("safetensors", "vllm")
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # as safetensors names them
_SUFFIXES = {"safetensors": ".safetensors", "vllm": ".json"}


@dataclass(frozen=True, slots=True)
class Written:
    """A picture's file, the encoder that its features are of, and how many tokens they are."""

    id: str
    path: str | None
    encoder: str
    tokens: int
    file: str


def export(
    store: FeatureStore, pictures: Sequence[StoredPicture], encoder_id: str, form: Format, out: Path
) -> Iterator[Written | Skipped]:
    """Write one file for each picture into a folder, named by the picture's id; what cannot be written is skipped.

    ``safetensors`` holds ``tokens`` ``(n, width)``, ``level 0`` and on for DeepStack, and in its metadata encoder,
    grid, how they were made (`qsplit.features.features.Making`) and, of videos, times. ``vllm`` is a JSON object to be
    put into a chat's ``content`` (see `qsplit.integrations.vllm.embeds`). A file appears whole or not at all. Raises
    `UsageError` for an unknown form.
    """
    if form not in FORMATS:
        raise UsageError(f"The format is {form!r}.", fix=f"Choose {', '.join(FORMATS)}.")
    written: Callable[[Features], bytes] = {"safetensors": _safetensors, "vllm": _part}[form]
    out.mkdir(parents=True, exist_ok=True)
    heads = {head.pixels_digest: head for head in _heads(store, pictures, encoder_id)}
    for picture in pictures:
        name = picture.path or picture.image.image_id
        try:
            head = heads.get(picture.image.pixels_digest)
            if head is None:
                raise NotIndexed(f"It has no features of the encoder {encoder_id[:12]}.", fix="Run `qsplit refresh`.")
            features = store.get_features([head.key])[head.key]
            file = out / f"{check_id(picture.image.image_id, 'The image id')}{_SUFFIXES[form]}"
            _put(file, written(features))
        except (NotIndexed, CorruptStore, InvalidFeatures, UsageError) as error:
            yield Skipped(name, str(error))
        else:
            yield Written(picture.image.image_id, picture.path, encoder_id, len(features), str(file))


def _heads(store: FeatureStore, pictures: Sequence[StoredPicture], encoder_id: str) -> Iterator[FeatureHead]:
    found = store.heads(picture.image.pixels_digest for picture in pictures)
    return (head for head in found if head.encoder.id == encoder_id)


def _safetensors(features: Features) -> bytes:
    told = {
        "encoder": json.dumps(asdict(features.encoder), sort_keys=True),
        "grid_thw": json.dumps(features.grid_thw),
        "exact": json.dumps(features.exact),
        "making": json.dumps(asdict(features.making), sort_keys=True),
        "timestamps": json.dumps(features.timestamps),
        "sample_fps": json.dumps(features.sample_fps),
    }
    arrays, dtype = dict(sorted(features.arrays.items())), _DTYPES[features.encoder.dtype]
    begin = header({name: (dtype, one.shape, one.nbytes) for name, one in arrays.items()}, told)
    return b"".join([begin, *map(as_bytes, arrays.values())])


def _part(features: Features) -> bytes:
    return json.dumps(image_part(features)).encode()


def _put(file: Path, content: bytes) -> None:
    draft = file.with_name(f".{file.name}.partial")
    draft.unlink(missing_ok=True)  # a link by this name would be written through
    draft.write_bytes(content)
    draft.replace(file)
