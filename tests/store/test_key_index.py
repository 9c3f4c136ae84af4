"""What a table's keys are is read of each fragment once, and is always what a query would find."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from qsplit.store.key_index import Keys

KEYS = [f"{number:04}" for number in range(50)]


def add(place: Path, keys: list[str]) -> Any:
    return lance.write_dataset(pa.table({"key": keys, "n": range(len(keys))}), place, mode="append")


def expect(keys: Keys, dataset: Any) -> None:
    times = Counter(dataset.to_table(columns=["key"])["key"].to_pylist())
    assert keys.among([*KEYS, "none"]) == times.keys()
    assert keys.doubled([*KEYS, "none"]) == {key for key, count in times.items() if count > 1}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many fragments are read, each time some are."""
    found: list[int] = []
    scanner = lance.LanceDataset.scanner

    def scan(dataset: Any, *given: Any, **options: Any) -> Any:
        if "fragments" in options:
            found.append(len(options["fragments"] or []))
        return scanner(dataset, *given, **options)

    monkeypatch.setattr(lance.LanceDataset, "scanner", scan)
    return found


def test_only_what_is_new_is_read(tmp_path: Path, read: list[int]) -> None:
    keys = Keys("key").look(add(tmp_path, KEYS[:10]))
    keys = keys.look(add(tmp_path, KEYS[10:20]))
    dataset = add(tmp_path, KEYS[5:7])
    keys = keys.look(dataset).look(dataset)
    assert read == [1, 1, 1]
    expect(keys, dataset)


def test_rows_that_are_deleted_and_fragments_that_are_rewritten_are_seen(tmp_path: Path, read: list[int]) -> None:
    for start in range(0, 50, 10):
        dataset = add(tmp_path, KEYS[start : start + 10])
    keys = Keys("key").look(dataset)
    for where in ("key < '0005'", "key >= '0030' AND key < '0040'", "key = '0007'"):
        dataset.delete(where)
        keys = keys.look(dataset)
        expect(keys, dataset)
    assert read == [5, 1, 1]  # a fragment that is gone needs no reading
    dataset.optimize.compact_files()
    keys = keys.look(dataset)
    assert read == [5, 1, 1, 1]
    expect(keys, dataset)
    dataset.delete("true")
    expect(keys.look(dataset), dataset)


def test_what_was_known_of_another_version_stays_what_it_was(tmp_path: Path) -> None:
    before = add(tmp_path, KEYS[:10])
    keys = Keys("key").look(before)
    after = lance.write_dataset(pa.table({"key": KEYS[10:20], "n": range(10)}), tmp_path, mode="append")
    newer = keys.look(after)
    expect(keys, before.checkout_version(1))
    expect(newer, after)
    expect(newer.look(before.checkout_version(1)), before.checkout_version(1))


def test_a_table_may_be_restored_and_written_to_again(tmp_path: Path) -> None:
    add(tmp_path, KEYS[:10])
    dataset = add(tmp_path, KEYS[10:20])
    keys = Keys("key").look(dataset)
    dataset.checkout_version(1).restore()
    dataset = add(tmp_path, KEYS[20:30])
    expect(keys.look(dataset), dataset)


def test_a_key_is_looked_for_where_it_is(tmp_path: Path) -> None:
    for some in (KEYS[:10], KEYS[10:20], KEYS[5:15]):
        dataset = add(tmp_path, some)
    keys = Keys("key").look(dataset)
    ids = [fragment.fragment_id for fragment in dataset.get_fragments()]
    assert keys.fragments([KEYS[0]]) == [ids[0]]
    assert keys.fragments([KEYS[7], KEYS[19]]) == ids
    assert keys.fragments(["none"]) == keys.fragments([]) == []


def test_nothing_is_among_nothing(tmp_path: Path) -> None:
    assert Keys("key").among(["a"]) == Keys("key").among([]) == Keys("key").doubled([]) == set()
    dataset = lance.write_dataset(pa.table({"key": pa.array([], pa.string())}), tmp_path)
    assert Keys("key").look(dataset).among(["a"]) == set()
