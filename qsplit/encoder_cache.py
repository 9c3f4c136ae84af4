"""The path that stands in users' vLLM configuration; see `qsplit.integrations.vllm.ec_connector`."""

from qsplit.integrations.vllm.ec_connector import StoreConnector

__all__ = ["StoreConnector"]
