import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from transforms.strata import stratified, stratum_of

names = st.lists(st.integers(0, 999), min_size=1, max_size=60, unique=True).map(lambda ns: [f"{n:03d}" for n in ns])


@st.composite
def places(draw):
    return [(name, draw(st.floats(-90, 90)), draw(st.floats(0, 1))) for name in draw(names)]


@given(places(), st.integers(0, 9), st.data())
def test_no_cell_gives_two_more_than_another_that_has_some_left(tiles, seed, data):
    n = data.draw(st.integers(1, len(tiles)))
    cell = {name: stratum_of(lat, land) for name, lat, land in tiles}
    found = stratified(tiles, n, seed)
    assert len(set(found)) == n and set(found) <= set(cell)
    had, given_ = collections.Counter(cell.values()), collections.Counter(cell[name] for name in found)
    for some in had:
        for other in had:
            assert given_[other] == had[other] or given_[some] <= given_[other] + 1


@given(places(), st.integers(0, 9), st.randoms())
def test_the_choice_depends_on_the_seed_and_the_tiles_and_not_on_their_order(tiles, seed, random):
    n = (len(tiles) + 1) // 2
    shuffled = random.sample(tiles, len(tiles))
    assert stratified(tiles, n, seed) == stratified(shuffled, n, seed)
    assert set(stratified(tiles, n, seed)) <= set(stratified(tiles, len(tiles), seed)) == {t[0] for t in tiles}


def test_another_seed_chooses_others():
    tiles = [(f"{n:03d}", n % 90, 1.0) for n in range(500)]
    assert stratified(tiles, 20, 0) != stratified(tiles, 20, 1)


def test_a_rare_latitude_is_among_few_tiles():
    tiles = [(f"a{n}", 5.0, 1.0) for n in range(200)] + [("north", 71.0, 1.0), ("coast", 5.0, 0.1)]
    assert {"north", "coast"} <= set(stratified(tiles, 3, 0))


@pytest.mark.parametrize("n", [0, -1, 4])
def test_more_tiles_than_there_are_or_none_are_refused(n):
    with pytest.raises(BadInput, match=rf"--stratify {n}: there are 3 tiles"):
        stratified([("a", 0, 0), ("b", 0, 0), ("c", 0, 0)], n, 0)
