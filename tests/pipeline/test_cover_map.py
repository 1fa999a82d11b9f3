"""The demo's map from a few labels, against a loop over pixels and on a published tile."""

import numpy as np
import pytest
from rasterio.io import MemoryFile

from model.errors import BadInput
from pipeline.demo import cover_map
from pipeline.demo.landscape import Cover

SHAPE = (30, 40)


@pytest.fixture
def island():
    """Codes (8, H, W), scales with a gap, and the truth: four classes, each near a direction of its own."""
    random = np.random.RandomState(3)
    truth = random.choice([0, Cover.WATER, Cover.WHEAT, Cover.TOWN, Cover.DECIDUOUS], SHAPE).astype(np.uint8)
    middle = random.normal(size=(max(Cover) + 1, 8)) * 40
    codes = np.clip(middle[truth] + random.normal(size=(*SHAPE, 8)) * 25, -127, 127).astype(np.int8)
    scale = np.full(SHAPE, 0.1, np.float32)
    scale[:3] = np.nan
    return codes.transpose(2, 0, 1), scale, truth


def slow_guess(codes, scale, truth, chosen, row, col):
    """The class with most weight among the five labelled pixels of the least angle."""

    def direction(r, c):
        x = codes[:, r, c].astype(np.float64)
        return x / np.linalg.norm(x)

    here = direction(row, col)
    like = sorted(((float(here @ direction(r, c)), truth[r, c]) for r, c in chosen), reverse=True)
    votes = {}
    for cosine, kind in like[:5]:
        votes[kind] = votes.get(kind, 0) + 1 + cosine
    return max(votes, key=votes.get)


def test_every_pixel_gets_the_class_of_its_nearest_labels(island, monkeypatch):
    monkeypatch.setattr(cover_map, "_AT_ONCE_PX", 100)
    codes, scale, truth = island
    made = cover_map.cover_map(codes, scale, truth)
    there = np.isfinite(scale) & (truth > 0)
    assert made.labels == 4 * cover_map.LABELS
    np.testing.assert_array_equal(made.found > 0, there)
    random = np.random.RandomState(cover_map.SEED)
    places, kind = np.argwhere(there), truth[there]
    chosen = [places[i] for c in np.unique(kind) for i in random.permutation(np.flatnonzero(kind == c))[:20]]
    for row, col in places[::7]:
        assert made.found[row, col] == slow_guess(codes, scale, truth, chosen, row, col)


def test_what_is_right_is_counted_by_kinds_and_without_the_labelled_pixels(island):
    codes, scale, truth = island
    made = cover_map.cover_map(codes, scale, truth)
    assert set(made.right_of) == {"fields", "forest", "water", "town and roads"}
    assert min(made.right_of.values()) <= made.right <= max(made.right_of.values())
    assert made.right > 0.6
    by_chance = cover_map.cover_map(np.random.default_rng(0).permuted(codes, axis=1), scale, truth)
    assert by_chance.right < 0.45  # four kinds alike


def test_a_picture_shows_truth_and_map_by_kind(island):
    made = cover_map.cover_map(*island)
    with MemoryFile(cover_map.picture(made)) as file, file.open() as png:
        rgb = png.read()
    width = SHAPE[1] * cover_map.ZOOM
    assert rgb.shape == (3, SHAPE[0] * cover_map.ZOOM, 2 * width + cover_map.GAP_PX)
    row, col = np.argwhere(made.truth == Cover.WATER)[0] * cover_map.ZOOM
    assert tuple(rgb[:, row, col]) == cover_map.KINDS["water"][1]
    row, col = np.argwhere(made.found == Cover.TOWN)[0] * cover_map.ZOOM
    assert tuple(rgb[:, row, width + cover_map.GAP_PX + col]) == cover_map.KINDS["town and roads"][1]


def test_nothing_embedded_is_no_map(island):
    codes, scale, truth = island
    with pytest.raises(BadInput, match="no embedding"):
        cover_map.cover_map(codes, np.full_like(scale, np.nan), truth)


def test_a_kind_of_ground_has_every_class():
    assert sorted(c for members, _ in cover_map.KINDS.values() for c in members) == sorted(set(Cover) - {Cover.OUTSIDE})
