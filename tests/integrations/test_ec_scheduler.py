"""A server's pictures are looked for while its scheduler goes on, and what is said of them stays true."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import rows
import torch
from patience import PATIENCE

from qsplit.concurrency import Behind
from qsplit.errors import CorruptStore
from qsplit.features.features import Features
from qsplit.integrations.vllm.ec_scheduler import Finder

ENCODER = rows.encoder(width=8)
GRID = (1, 4, 4)  # 4 tokens


class Shelf:
    """Holds what it is told to, and waits as long as it is told to."""

    def __init__(self) -> None:
        self.held: dict[str, Features] = {}
        self.asked: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None

    def find(self, patches: torch.Tensor, _: Sequence[int]) -> tuple[str, Features | None]:
        self.open.wait()
        if self.error is not None:
            raise self.error
        shown = f"shown {int(patches[0, 0])}"
        self.asked.append(shown)
        return shown, self.held.get(shown)


def picture(number: int, offset: int = 0, **changes: Any) -> SimpleNamespace:
    """A picture of a request as vLLM has it."""
    data = {"pixel_values": torch.full((16, 3), number), "image_grid_thw": torch.tensor(GRID)}
    made: dict[str, Any] = {
        "identifier": f"name {number}",
        "mm_hash": f"name {number}",
        "modality": "image",
        "data": SimpleNamespace(get_data=lambda: data),
        "mm_position": SimpleNamespace(offset=offset, length=4, get_num_embeds=lambda: 4),
    }
    return SimpleNamespace(**(made | changes))


def request(*pictures: SimpleNamespace, name: str = "request") -> SimpleNamespace:
    return SimpleNamespace(request_id=name, mm_features=list(pictures))


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def finder(shelf: Shelf, *, keeps: bool = True) -> Finder:
    return Finder(shelf, keeps=keeps)  # type: ignore[arg-type]  # as much of one as is asked


def until(true: Callable[[], bool]) -> None:
    """Ask as the scheduler does, again and again."""
    ends = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_a_request_waits_until_all_its_pictures_were_looked_for(shelf: Shelf) -> None:
    shelf.held["shown 1"] = rows.features(1, ENCODER, GRID)
    found, asked = finder(shelf), request(picture(1), picture(2, offset=4))
    shelf.open.clear()
    assert not found.has_looked(asked, 0)
    assert not found.has("name 1")
    shelf.open.set()
    until(lambda: found.has_looked(asked, 0))
    assert (found.has("name 1"), found.has("name 2")) == (True, False)
    assert sorted(shelf.asked) == ["shown 1", "shown 2"]  # once each, however often it was asked


def test_what_is_found_is_handed_over_once_and_the_rest_is_to_be_kept(shelf: Shelf) -> None:
    features = shelf.held["shown 1"] = rows.features(1, ENCODER, GRID)
    found, asked = finder(shelf), request(picture(1), picture(2, offset=4))
    until(lambda: found.has_looked(asked, 0))
    found.hand(asked, 0)
    found.hand(asked, 1)
    handed = found.handed()
    assert list(handed.found) == ["name 1"]
    assert torch.equal(handed.found["name 1"], features.to_torch()[0])
    assert handed.wanted == {"name 2": ("shown 2", GRID)}
    assert (found.handed().found, found.handed().wanted) == ({}, {})
    assert found.has_looked(asked, 0)  # of a prompt that is read in parts, nothing is looked for again
    assert len(shelf.asked) == 2


def test_levels_lie_behind_the_tokens(shelf: Shelf) -> None:
    deep = rows.encoder(width=8, levels=2)
    features = shelf.held["shown 1"] = rows.features(1, deep, GRID)
    found, asked = finder(shelf), request(picture(1))
    until(lambda: found.has_looked(asked, 0))
    found.hand(asked, 0)
    (embedded,) = found.handed().found.values()
    assert torch.equal(embedded, torch.cat(features.to_torch(), dim=1))


def test_whoever_only_reads_keeps_nothing(shelf: Shelf) -> None:
    found, asked = finder(shelf, keeps=False), request(picture(1))
    until(lambda: found.has_looked(asked, 0))
    found.hand(asked, 0)
    assert found.handed().wanted == {}


@pytest.mark.parametrize(
    "changes",
    [{"modality": "video"}, {"data": None}, {"identifier": "adapter:name 1"}],
    ids=["video", "cached elsewhere", "adapter"],
)
def test_what_is_not_ours_is_left_to_the_server(shelf: Shelf, changes: dict[str, Any]) -> None:
    found, one = finder(shelf), picture(1, **changes)
    assert found.has_looked(request(one), 0)
    assert not found.has(one.identifier)
    found.hand(request(one), 0)
    assert found.handed().wanted == {}
    assert shelf.asked == []


def test_what_is_computed_already_is_not_looked_for(shelf: Shelf) -> None:
    found, asked = finder(shelf), request(picture(1), picture(2, offset=4))
    until(lambda: found.has_looked(asked, 4))
    assert shelf.asked == ["shown 2"]


def test_a_picture_that_the_server_let_go_of_is_looked_for_again(shelf: Shelf) -> None:
    found, asked = finder(shelf), request(picture(1))
    for times in (1, 2):
        until(lambda: found.has_looked(asked, 0))
        found.hand(asked, 0)
        assert len(shelf.asked) == times
        found.freed(asked, 0)


def test_nothing_is_left_of_requests_that_are_finished(shelf: Shelf) -> None:
    shelf.held["shown 1"] = rows.features(1, ENCODER, GRID)
    found, asked = finder(shelf), request(picture(1), picture(2, offset=4))
    until(lambda: found.has_looked(asked, 0))
    found.hand(asked, 1)
    found.finished(asked)
    assert not found.has("name 1")
    assert (found._looked, found._handed) == ({}, {})


@pytest.mark.parametrize("error", [CorruptStore("It is torn."), OSError("gone"), RuntimeError("Lance"), KeyError("x")])
def test_a_store_that_fails_costs_no_answer(shelf: Shelf, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    shelf.error = error
    found, asked = finder(shelf), request(picture(1))
    until(lambda: found.has_looked(asked, 0))
    assert not found.has("name 1")
    found.hand(asked, 0)
    handed = found.handed()
    assert (handed.found, handed.wanted) == ({}, {})
    assert "cannot be looked for" in caplog.text


def test_features_of_another_size_are_not_handed_over(shelf: Shelf) -> None:
    shelf.held["shown 1"] = rows.features(1, ENCODER, (1, 4, 6))
    found, asked = finder(shelf), request(picture(1))
    until(lambda: found.has_looked(asked, 0))
    assert not found.has("name 1")


# --- what is done behind ---


def test_what_does_not_fit_is_told_and_the_rest_is_done_in_order() -> None:
    may, done = threading.Event(), list[list[int]]()

    def work(some: list[int]) -> None:
        may.wait()
        done.append(some)

    behind = Behind(work, waiting=4, together=3)
    taken = [behind.put(number) for number in range(20)]
    assert taken[:4] == [True] * 4
    assert not all(taken)
    may.set()
    assert behind.close()
    assert [number for some in done for number in some] == [n for n, was in enumerate(taken) if was]
    assert max(map(len, done)) <= 3


@pytest.mark.parametrize("kind", [RuntimeError, BaseException])
def test_what_fails_behind_does_not_end_what_comes_later(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    done = list[int]()

    def work(some: list[int]) -> None:
        if 0 in some:
            raise kind("no room")
        done.extend(some)

    behind: Behind[int] = Behind(work, together=1)
    assert all(behind.put(number) for number in range(3))
    assert behind.close()
    assert done == [1, 2]
    assert "no room" in caplog.text


def test_closing_does_not_wait_for_ever() -> None:
    may = threading.Event()
    behind: Behind[int] = Behind(lambda _: may.wait(), waiting=1)
    while behind.put(1):
        pass
    assert not behind.close(timeout=0.05)
    may.set()
