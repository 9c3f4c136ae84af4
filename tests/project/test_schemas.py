"""The generated contracts are those of the code, and a real store is what they say."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qsplit.store.feature_store import FeatureStore

SCHEMAS = Path(__file__).parents[2] / "schemas"


def test_the_contracts_are_those_of_the_code() -> None:
    done = subprocess.run(
        [sys.executable, str(SCHEMAS / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [path.name for path in sorted(SCHEMAS.glob("*.json"))])
@pytest.mark.parametrize("change", ["renamed", "gone"])
def test_each_contract_is_guarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, change: str
) -> None:
    monkeypatch.syspath_prepend(str(SCHEMAS))
    generate = importlib.import_module("generate")
    copy = tmp_path / "schemas"
    shutil.copytree(SCHEMAS, copy)
    content = json.loads((copy / name).read_text())
    content["renamed"] = content.pop(next(iter(content)))
    (copy / name).write_text(json.dumps(content, indent=2) + "\n")
    if change == "gone":
        (copy / name).unlink()
    monkeypatch.setattr(generate, "HERE", copy)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    assert capsys.readouterr().err.startswith(f"{name} differ from the code.")


def test_a_store_has_the_tables_of_the_contract(store: FeatureStore) -> None:
    tables = json.loads((SCHEMAS / "store.v5.json").read_text())["tables"]
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
