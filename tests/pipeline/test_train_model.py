"""The maker of the shipped model: what it takes for the truth, and what it asks before it ships."""

import numpy as np
import pytest

from model.errors import NotProven
from model.modelfile import open_model
from pipeline.demo import train_model
from pipeline.demo.landscape import Cover
from pipeline.demo.planet import Planet
from pipeline.demo.run import PERIOD
from transforms.grid import tile_of


@pytest.fixture
def earth(tmp_path):
    """A planet whose files nobody reads: its truth is computed from places."""
    return Planet(tmp_path, 0, 640, ("32TQQ", "32TQR", "33TUL"))


def places(earth, tile):
    row, col, height, width = earth.island(tile)
    rows, cols = np.divmod(np.arange(height * width), width)
    return np.full(height * width, tile.encode(), "S5"), (rows + row).astype(np.int32), (cols + col).astype(np.int32)


@pytest.mark.parametrize("tile", ["32TQQ", "32TQR", "33TUL"])
def test_the_truth_of_a_place_is_that_of_the_planet(earth, tile):
    got = train_model.truth_of(earth, *places(earth, tile)).cover
    expected = earth.class_map(tile).ravel()
    assert (got[expected != Cover.OUTSIDE] == expected[expected != Cover.OUTSIDE]).all()
    assert len(np.unique(expected)) > 4


def test_a_parcel_is_the_same_in_every_tile_that_sees_it(earth):
    """Tiles of one zone share their pixels; a place a row further belongs to another one somewhere."""
    tile, row, col = places(earth, "32TQR")
    here, other = tile_of("32TQR"), tile_of("32TQQ")
    moved = row + (other.top_m - here.top_m) // 10, col + (here.left_m - other.left_m) // 10
    ours = train_model.truth_of(earth, tile, row, col)
    theirs = train_model.truth_of(earth, np.full(len(tile), b"32TQQ"), *(m.astype(np.int32) for m in moved))
    assert (ours.parcel == theirs.parcel).all() and (ours.cover == theirs.cover).all()
    shifted = train_model.truth_of(earth, tile, row + 1, col)
    assert (shifted.parcel != ours.parcel).any()


def test_places_beside_the_island_have_no_truth(earth):
    truth = train_model.truth_of(
        earth, np.array([b"32TQR"] * 2), np.array([0, 10979], np.int32), np.array([0, 0], np.int32)
    )
    assert (truth.cover == Cover.OUTSIDE).all() and not truth.parcel.any()


@pytest.mark.parametrize(
    ("mean", "low", "good"), [(0.05, 0.01, True), (0.05, -0.01, False), (0.01, 0.005, False), (-0.1, -0.2, False)]
)
def test_a_model_that_is_not_clearly_better_than_untrained_is_not_shipped(mean, low, good, tmp_path):
    margin = {"mean": mean, "low": low, "high": mean + 0.02}
    if good:
        train_model.check_margin(margin, tmp_path / "m.onnx")
        return
    with pytest.raises(NotProven, match=r"m.onnx was left as it is: .* above the untrained one"):
        train_model.check_margin(margin, tmp_path / "m.onnx")


def test_the_shipped_models_record_names_what_it_saw_and_how_far_it_is_above_untrained():
    model = open_model(train_model.MODEL)
    told = model.origin["training"]
    assert told["planet"]["period"] == PERIOD and told["shards"]["records"] > 50_000
    assert told["steps"] > 0 and "for demonstrations" in model.profile.notes
    probe = told["probe"]
    train_model.check_margin(probe["margin_over_untrained"], train_model.MODEL)
    scores = probe["scores"][probe["head"]]
    gap = np.subtract(scores["trained"], scores["untrained encoder"])
    assert np.mean(gap) == pytest.approx(probe["margin_over_untrained"]["mean"], abs=1e-6)
