"""One half of a model: the checkpoint's own class without the other half's modules, loaded strictly.

The model is built on the meta device and loses the other half's modules before any weight is read, so what is deleted
never takes memory, and only the wanted half's tensors are opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError, safe_open

from qsplit.errors import CheckpointError
from qsplit.models.families import Family, Half

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load_half"]


def load_half(
    family: Family,
    half: Half,
    config: Any,
    tensors: Mapping[str, tuple[Path, str]],
    *,
    dtype: torch.dtype,
    attention: str | None = None,
    name: str = "",
) -> PreTrainedModel:
    """The model class with one half's modules and weights, on the CPU.

    ``tensors`` gives, for each canonical name, the file and the name in it; ``name`` is what messages call the
    checkpoint.
    Raises `CheckpointError` naming the first missing, unexpected or misshapen tensor.
    """
    what = f"{half} half of {name}"
    with ExitStack() as stack, _quiet():
        try:
            model, report = _half_class(family, half).from_pretrained(
                None,
                config=_half_config(config, half),
                state_dict=_open(tensors, stack),
                dtype=dtype,
                attn_implementation=attention,
                ignore_mismatched_sizes=True,  # they come back in the report, which names them
                output_loading_info=True,
            )
        except (RuntimeError, ValueError, ImportError, SafetensorError) as error:
            raise CheckpointError(f"The {what} cannot be loaded: {error}") from error
    _check_report(report, tensors, what)
    return model  # type: ignore[no-any-return]  # the class was made at run time


def _half_class(family: Family, half: Half) -> Any:
    """A subclass of the family's class that deletes the other half's modules as soon as they exist (on meta)."""
    parent = getattr(transformers, family.class_name)
    other = family.modules("language" if half == "vision" else "vision")

    def init(self: Any, config: Any) -> None:
        parent.__init__(self, config)
        for path in other:
            owner, _, name = path.rpartition(".")
            delattr(self.get_submodule(owner), name)

    members: dict[str, Any] = {"__init__": init, "__module__": __name__}
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
