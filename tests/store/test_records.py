"""Keys that stores of earlier versions hold."""

from __future__ import annotations

import numpy as np

from qsplit.store.records import semantics_key


def test_the_key_of_a_way_of_making_vectors_is_the_same_for_ever() -> None:
    decides = ("e" * 64, "w" * 64, '{"layer": -1}')
    key = "178982550b88d22c1adb6712c9e14df487fd44c9b74c2ad90f48985a502b8bdc"
    assert semantics_key(*decides, (0.5, -1.25), ()) == key
    assert semantics_key(*decides, np.array([0.5, -1.25], np.float32), np.empty(0, np.float32)) == key
    assert semantics_key(*decides, (), (0.5, -1.25)) != key
