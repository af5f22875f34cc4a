"""The one-pass labeller: any order of the pairs gives the same labels, and what it calls settled is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clustering.kernels import Pairs
from engine.clustering.labeller import Labeller
from engine.clustering.labelling import Setting
from engine.clustering.spaces import Space
from tests.support.clusterable import Case, reference

SETTINGS = [Setting(0.02, 3), Setting(0.005, 3), Setting(0.02, 6), Setting(0.1, 1), Setting(0.02, 3)]


def some_rows(seed: int, n: int = 60) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    angles = np.sort(random.choice(np.linspace(0.0, 2.5, 8), n)) + random.normal(0.0, 0.09, n)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return rows[random.permutation(n)].astype(np.float32)


def all_pairs(space: Space) -> Pairs:
    left, right = np.triu_indices(len(space), 1)
    values = (space.rows @ space.rows.T)[left, right] + space.offset[left] + space.offset[right]
    return Pairs(np.stack([left, right], axis=1).astype(np.int32), values)


def shuffled(pairs: Pairs, seed: int) -> Pairs:
    """The same in another order, every other pair the other way round."""
    order = np.random.default_rng(seed).permutation(len(pairs.values))
    rows = pairs.rows[order]
    rows[::2] = rows[::2, ::-1].copy()
    return Pairs(np.ascontiguousarray(rows), pairs.values[order])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    order=st.integers(0, 2**32 - 1),
    weighted=st.booleans(),
    cut=st.integers(1, 400),
)
def test_pairs_in_any_order(seed: int, order: int, weighted: bool, cut: int) -> None:
    rows = some_rows(seed)
    weights = np.random.default_rng(seed).integers(1, 4 if weighted else 2, len(rows))
    space = Space.of(rows, "cosine")
    labeller = Labeller(space, SETTINGS, weights)
    pairs = shuffled(all_pairs(space), order)
    for start in range(0, len(pairs.values), cut):
        part = Pairs(pairs.rows[start : start + cut], pairs.values[start : start + cut])
        labeller.feed(part, len(part.values))
        if start % 3 == 0:
            labeller.flatten()
    for setting, found in zip(SETTINGS, labeller.labellings(), strict=True):
        assert found.setting == setting
        labels, core = reference(Case(rows, "cosine", *setting, weights.astype(np.float64)))
        np.testing.assert_array_equal(found.labels, labels)
        np.testing.assert_array_equal(np.flatnonzero(found.core), core)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), fed=st.floats(0.0, 1.0))
def test_pairs_of_a_settled_tile_need_not_be_fed(seed: int, fed: float) -> None:
    """Whatever was fed before: of a tile without an open target every pair can be left out, of another one
    those below the target.
    """
    rows = some_rows(seed)
    space = Space.of(rows, "cosine")
    pairs = shuffled(all_pairs(space), seed)
    ones = np.ones(len(rows), np.int64)
    whole, part = Labeller(space, SETTINGS, ones), Labeller(space, SETTINGS, ones)
    count = int(fed * len(pairs.values))
    for labeller in (whole, part):
        labeller.feed(pairs, count)
    rest = Pairs(pairs.rows[count:], pairs.values[count:])
    whole.feed(rest, len(rest.values))
    order = part.by_component(np.arange(len(rows)))
    assert sorted(order.tolist()) == list(range(len(rows)))
    for tile in np.array_split(order, 8):
        for other in np.array_split(order, 6):
            least = part.open_target(tile, other)
            inside = np.isin(rest.rows[:, 0], tile) & np.isin(rest.rows[:, 1], other)
            needed = inside & (rest.values >= (np.inf if least is None else least))
            part.feed(Pairs(rest.rows[needed], rest.values[needed]), int(needed.sum()))
    for one, other_one in zip(whole.labellings(), part.labellings(), strict=True):
        np.testing.assert_array_equal(one.labels, other_one.labels)
        np.testing.assert_array_equal(one.core, other_one.core)


def test_a_tile_is_open_until_its_rows_are_core_and_joined_in_every_setting() -> None:
    rows = np.ones((6, 3), np.float32) / np.float32(np.sqrt(3.0))
    rows[3:] *= np.float32([1, 1, -1])
    space = Space.of(rows, "cosine")
    small, large = Setting(0.01, 2), Setting(1.9, 2)
    labeller = Labeller(space, [large, small], np.ones(6, np.int64))
    first, second = np.arange(3), np.arange(3, 6)

    def feed(*pairs: tuple[int, int]) -> None:
        both = np.array(pairs, np.int32)
        values = np.einsum("ij,ij->i", rows[both[:, 0]], rows[both[:, 1]])
        labeller.feed(Pairs(both, values + 2 * space.offset[0]), len(pairs))

    assert labeller.open_target(first, first) == space.target(1.9)
    feed((0, 1))
    assert labeller.open_target(first, first) == space.target(1.9)  # row 2 is not core
    feed((1, 2), (3, 4), (4, 5))
    assert labeller.open_target(first, first) is None
    assert labeller.open_target(second, second) is None
    assert labeller.open_target(first, second) == space.target(1.9)  # not joined in either
    feed((0, 3))  # within the large eps only
    assert labeller.open_target(first, second) == space.target(0.01)
    large_found, small_found = labeller.labellings()
    assert large_found.labels.tolist() == [0] * 6
    assert small_found.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_only_the_settings_that_are_open_set_the_target() -> None:
    rows = np.ones((4, 2), np.float32) / np.float32(np.sqrt(2.0))
    space = Space.of(rows, "cosine")
    labeller = Labeller(space, [Setting(1.9, 1), Setting(0.1, 4)], np.ones(4, np.int64))
    every = np.arange(4)
    assert labeller.open_target(every, every) == space.target(1.9)
    chain = Pairs(np.array([[0, 1], [1, 2], [2, 3]], np.int32), np.full(3, 1.0, np.float32))
    labeller.feed(chain, 3)
    # with min_samples 1 all are joined; with 4 none has enough neighbours yet
    assert labeller.open_target(every, every) == pytest.approx(space.target(0.1))


def test_large_components_come_first_and_rows_that_are_not_core_last() -> None:
    rows = np.eye(8, dtype=np.float32)
    labeller = Labeller(Space.of(rows, "cosine"), [Setting(0.5, 2)], np.ones(8, np.int64))
    joined = np.array([[1, 6], [0, 3], [3, 5]], np.int32)
    labeller.feed(Pairs(joined, np.ones(3, np.float32)), 3)
    labeller.flatten()
    assert labeller.by_component(np.arange(8)).tolist() == [0, 3, 5, 1, 6, 2, 4, 7]
