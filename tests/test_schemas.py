"""The generated contracts are those of the code, and a real store is what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from qsplit.store import FeatureStore

SCHEMAS = Path(__file__).parent.parent / "schemas"


def test_the_contracts_are_those_of_the_code() -> None:
    done = subprocess.run(
        [sys.executable, str(SCHEMAS / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_store_has_the_tables_of_the_contract(store: FeatureStore) -> None:
    tables = json.loads((SCHEMAS / "store.v1.json").read_text())["tables"]
    for name in ("files", "images", "features"):
        found = store._tables[name].schema
        assert [(field.name, field.nullable) for field in found] == [
            (field["name"], field["nullable"]) for field in tables[name]["fields"]
        ]
        for field, wanted in zip(found, tables[name]["fields"], strict=True):
            if "qsplit:blob" in wanted["metadata"]:
                assert field.type.extension_name == "lance.blob.v2"
            else:
                assert str(field.type) == wanted["type"]
