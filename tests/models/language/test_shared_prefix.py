"""What follows a shared beginning looks at that and at its own, and gets its keys and values in a row of its own."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from qsplit.models.language.shared_prefix import Tails

HEADS, WIDTH = 2, 3


def tails(begin: int, sizes: list[int]) -> Tails:
    """Tails whose token ids are all different, from 1,000 on."""
    numbers = iter(range(1000, 1000 + sum(sizes)))
    return Tails(begin, [torch.tensor([next(numbers) for _ in range(size)]) for size in sizes])


def cache_of(ids: torch.Tensor) -> DynamicCache:
    """A cache in which the keys of a token are its id, and its values the id's negative."""
    cache = DynamicCache()
    keys = ids.float()[None, None, :, None].expand(1, HEADS, -1, WIDTH)
    for layer in range(2):
        cache.update(keys, -keys, layer)
    return cache


@given(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_a_token_looks_at_its_own_prompt_up_to_itself(begin: int, sizes: list[int]) -> None:
    made = tails(begin, sizes)
    sequence = torch.cat([torch.arange(begin), made.ids[0]]).tolist()
    mask = made.mask()
    for i, token in enumerate(sequence):
        seen = [sequence[k] for k in mask[i].nonzero()[:, 0].tolist()]
        mine = next((row.tolist() for row in made.rows if token in row.tolist()), [])
        whole = [*range(begin), *mine]
        assert seen == whole[: whole.index(token) + 1]
    assert made.places.tolist() == [begin + i for size in sizes for i in range(size)]


@given(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=5), st.data())
def test_a_row_holds_the_beginning_and_what_is_its_own(begin: int, sizes: list[int], data: st.DataObject) -> None:
    made = tails(begin, sizes)
    beginning = torch.arange(begin)
    wanted = data.draw(st.lists(st.sampled_from(range(len(sizes))), min_size=1, unique=True))
    rows = made.side_by_side(cache_of(torch.cat([beginning, made.ids[0]])), wanted)
    mask, ids = made.mask_of(wanted).bool(), made.ids_of(beginning, wanted, filler=7)
    for layer in rows.layers:
        for row, number in enumerate(wanted):
            expected = [*range(begin), *made.rows[number].tolist()]
            assert ids[row, mask[row]].tolist() == expected
            for head in range(HEADS):
                assert layer.keys[row, head, mask[row], 0].tolist() == expected
                assert layer.values[row, head, mask[row], -1].tolist() == [-one for one in expected]


def test_rows_grow_by_any_number_of_tokens() -> None:
    made = tails(3, [2, 4])
    rows = made.side_by_side(cache_of(torch.cat([torch.arange(3), made.ids[0]])), [0, 1])
    length = rows.get_seq_length()
    for i, more in enumerate((1, 1, 70, 1, 200)):
        new = torch.full((2, HEADS, more, WIDTH), 5000.0 + i)
        before = rows.layers[0].keys.clone()
        keys, values = rows.update(new, -new, 0)
        assert torch.equal(keys, torch.cat([before, new], dim=2))
        assert torch.equal(values[:, :, -more:], -new)
        length += more
        assert rows.get_seq_length() == length


def test_states_are_told_apart_by_their_ends() -> None:
    made = tails(3, [2, 4])
    states = torch.arange(9.0)[:, None]
    for some in (states, states[3:]):
        assert [one[:, 0].tolist() for one in made.split(some)] == [[3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
