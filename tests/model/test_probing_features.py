import dataclasses
import json
import math

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from records_made import records

from model.errors import BadInput
from model.probing import baselines, fusion, invariance
from model.probing.regions import covered, overlap, within
from model.shards import Batch, write_set


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    made = write_set(
        tmp_path_factory.mktemp("set") / "s", [records()], profile_name="v2", period="2024", origin={}, shard_records=7
    )
    return made.take(np.arange(len(made)))


def observed(batch, i, sensor="s2"):
    """The valid observations of a record: values, days."""
    valid = getattr(batch, f"{sensor}_valid")[i]
    return getattr(batch, sensor)[i][valid].astype(float), getattr(batch, f"{sensor}_doy")[i][valid]


@pytest.mark.parametrize(("day", "month"), [(1, 0), (31, 0), (32, 1), (59, 1), (60, 2), (181, 5), (365, 11), (366, 11)])
def test_a_day_belongs_to_its_month(day, month):
    assert baselines.month_of(np.array([day], np.int16))[0] == month


@pytest.mark.parametrize("sensor", ["s2", "s1"])
def test_a_monthly_composite_is_the_median_of_what_is_valid(batch, sensor):
    got = baselines.medians(*(getattr(batch, f"{sensor}{part}") for part in ("", "_valid", "_doy")))
    for i in range(len(batch)):
        values, days = observed(batch, i, sensor)
        months = baselines.month_of(days)
        for m in range(12):
            if (months == m).any():
                np.testing.assert_allclose(got[i, m], np.median(values[months == m], axis=0))
            else:
                assert np.isnan(got[i, m]).all()


def test_gaps_are_bridged_around_the_year():
    months = np.full((1, 12, 2), np.nan, np.float32)
    months[0, 10, 0], months[0, 2, 0] = 1.0, 5.0
    got = baselines.filled(months)
    np.testing.assert_allclose(got[0, [10, 11, 0, 1, 2], 0], [1, 2, 3, 4, 5])
    assert got[0, 6, 0] == pytest.approx(3.0)
    assert np.isnan(got[0, :, 1]).all()


def test_masked_observations_change_no_baseline(batch):
    other = dataclasses.replace(batch, s2=np.where(batch.s2_valid[..., None], batch.s2, 9999).astype(np.uint16))
    for features in (baselines.monthly, baselines.harmonic):
        np.testing.assert_array_equal(features(batch), features(other))


def test_the_harmonic_fit_finds_a_planted_season(batch):
    angle = 2 * np.pi * batch.s2_doy / 365.25
    wave = 3000 + 700 * np.cos(angle) - 300 * np.sin(2 * angle)
    planted = dataclasses.replace(batch, s2=np.repeat(wave[..., None], 10, axis=-1).astype(np.uint16))
    many = batch.s2_valid.sum(1) >= 10
    got = baselines.harmonic(planted)[many, :50].reshape(-1, 5, 10)
    np.testing.assert_allclose(got[:, :, 3], np.tile([3000, 700, 0, 0, -300], (many.sum(), 1)), atol=12)


def test_one_date_alone_has_a_harmonic_fit_of_its_mean(batch):
    one = np.zeros_like(batch.s2_valid)
    one[:, 0] = True
    got = baselines.harmonic(dataclasses.replace(batch, s2_valid=one))[:, :10]
    np.testing.assert_allclose(got, batch.s2[:, 0], rtol=0.02)


def test_principal_components_hold_the_variance_and_are_uncorrelated():
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(200, 3))
    series = (hidden @ rng.normal(size=(3, 40))).astype(np.float32)
    series[3, 5] = np.nan
    got = baselines.components(series, 5)
    covariance = np.cov(got.T)
    assert np.trace(covariance[:3, :3]) / np.trace(covariance) > 0.999
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-2)


def test_raw_steps_are_had_where_all_records_have_the_same_ones_alone(batch):
    assert baselines.steps(batch) is None
    valid, doy = np.ones_like(batch.s2_valid), np.maximum(batch.s2_doy, 1)
    valid[3, 1] = False
    whole = dataclasses.replace(batch, s2_valid=valid, s2_doy=doy, s1_valid=np.zeros_like(batch.s1_valid))
    got = baselines.steps(whole)
    assert np.isnan(got[3, 10:20]).all() and np.isnan(got).sum() == 10
    np.testing.assert_array_equal(got[4:], batch.s2.reshape(len(batch), -1)[4:])


def test_raw_steps_of_records_with_one_step_more_or_less_are_not_had(batch):
    valid, doy = np.ones_like(batch.s2_valid), np.maximum(batch.s2_doy, 1)
    valid[3, -1], doy[3, -1] = False, 0
    padded = dataclasses.replace(batch, s2_valid=valid, s2_doy=doy, s1_valid=np.zeros_like(batch.s1_valid))
    assert valid.mean() > 0.95 and baselines.steps(padded) is None


def test_a_sensor_that_no_record_has_adds_no_column(batch):
    alone = invariance.without_radar(batch)
    assert baselines.monthly(batch).shape[1] == 12 * 12 and baselines.monthly(alone).shape[1] == 12 * 10
    assert baselines.harmonic(alone).shape[1] == 5 * 10


def test_halves_are_disjoint_and_together_all_that_is_valid(batch):
    a, b = invariance.halves(batch, 1)
    for sensor in ("s2_valid", "s1_valid"):
        whole, first, second = (getattr(x, sensor) for x in (batch, a, b))
        assert not (first & second).any() and ((first | second) == whole).all()
        assert set((first.sum(1) - second.sum(1)).tolist()) <= {0, 1}
    c, _ = invariance.halves(batch, 2)
    assert (a.s2_valid != c.s2_valid).any()


def test_a_half_has_nothing_of_the_other_one_not_behind_its_mask_either(batch):
    a, b = invariance.halves(batch, 1)
    for sensor in ("s2", "s1"):
        for one, other in ((a, b), (b, a)):
            gone = getattr(other, f"{sensor}_valid")
            assert gone.any() and not getattr(one, sensor)[gone].any() and not getattr(one, f"{sensor}_doy")[gone].any()
    alone = invariance.without_radar(batch)
    assert not alone.s1.any() and not alone.s1_doy.any()
    np.testing.assert_array_equal(alone.s2, batch.s2)


def test_where_no_masked_date_was_kept_nothing_is_said_of_clouds(batch):
    clear = dataclasses.replace(batch, s2_doy=np.where(batch.s2_valid, batch.s2_doy, 0).astype(np.int16))
    found = invariance.measure(clear, planted(0.0))
    assert found["by_clouds"] == [] and found["by_dates"]
    assert invariance.measure(batch, planted(0.0))["by_clouds"]


def planted(noise):
    """An encoder that knows which pixel it sees, and adds noise by what it was shown."""
    own = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)

    def encode(batch: Batch):
        out = own[batch.index] * (1 - noise)
        for i in range(len(batch)):
            seen = np.random.default_rng(int(batch.s2[i][batch.s2_valid[i]].sum()))
            out[i] += noise * seen.normal(size=8)
        return out

    return encode


def test_an_encoder_that_sees_the_pixel_alone_is_invariant(batch):
    found = invariance.measure(batch, planted(0.0))
    assert found["halves"]["cosine"] == pytest.approx(1) and found["halves"]["found"] == 1
    assert abs(found["halves"]["chance"]) < 0.2
    assert found["radar_removed"]["cosine"] == pytest.approx(1)
    assert sum(part["pixels"] for part in found["by_dates"]) == len(batch)
    assert all(a["to"] <= b["from"] for a, b in zip(found["by_clouds"], found["by_clouds"][1:], strict=False))


def test_an_encoder_that_sees_the_draw_alone_is_not(batch):
    found = invariance.measure(batch, planted(1.0))
    assert abs(found["halves"]["cosine"]) < 0.3 and found["halves"]["found"] < 0.3


def test_a_constant_encoder_has_a_cosine_of_one_and_tells_no_pixel_from_another(batch):
    found = invariance.measure(batch, lambda b: np.ones((len(b), 8), np.float32) + planted(1.0)(b) * 1e-3)["halves"]
    assert found["cosine"] == pytest.approx(1, abs=1e-3) and found["chance"] == pytest.approx(1, abs=1e-3)
    assert abs(found["centred"]) < 0.3 and found["found"] < 0.3


def test_pixels_without_an_embedding_are_not_counted(batch):
    def encode(b):
        out = planted(0.0)(b)
        out[:5] = np.nan
        return out

    assert invariance.measure(batch, encode)["halves"]["pixels"] == len(batch) - 5


def test_sources_are_combined_in_pairs_and_all_together():
    assert fusion.combinations(["a"]) == []
    assert fusion.combinations(["a", "b"]) == [("a", "b")]
    assert fusion.combinations(["a", "b", "c"]) == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]


def test_fused_features_stand_side_by_side():
    parts = {"a": np.ones((3, 2), np.float32), "b": np.zeros((3, 5), np.float32), "c": np.ones((3, 1), np.float32)}
    x, widths = fusion.fused(parts, ("b", "c"))
    assert widths == (5, 1) and x.tolist() == [[0, 0, 0, 0, 0, 1]] * 3


def test_other_embeddings_are_read_a_row_a_record(tmp_path):
    x = np.arange(12.0).reshape(4, 3)
    x[1] = np.nan
    np.save(tmp_path / "a.npy", x)
    np.testing.assert_array_equal(fusion.read_features(tmp_path / "a.npy", 4), x.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 2)), "3 rows, and the set has 4"),
        (np.zeros(4), r"float64 \(4,\)"),
        (np.full((4, 2), np.inf), "infinities"),
        (np.array([["a"]] * 4), "must hold numbers"),
    ],
)
def test_what_is_no_table_of_embeddings_is_refused(tmp_path, array, words):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadInput, match=words):
        fusion.read_features(tmp_path / "a.npy", 4)


def test_a_missing_or_foreign_file_is_refused_by_name(tmp_path):
    with pytest.raises(BadInput, match=r"b\.npy cannot be read"):
        fusion.read_features(tmp_path / "b.npy", 4)
    (tmp_path / "c.npy").write_text("no array")
    with pytest.raises(BadInput, match=r"c\.npy is not a \.npy"):
        fusion.read_features(tmp_path / "c.npy", 4)


LON, LAT = np.array([10.0, 20.0, 179.5, -179.5, np.nan]), np.array([50.0, 50.0, 0.0, 0.0, 0.0])


def test_boxes_may_cross_180_degrees():
    assert within([[9, 49, 11, 51]], LON, LAT).tolist() == [True, False, False, False, False]
    assert within([[179, -1, -179, 1]], LON, LAT).tolist() == [False, False, True, True, False]


def test_points_inside_the_trained_regions_are_counted_and_said():
    trained = {"tiles": ["32UQD"], "bounds": [[9, 49, 11, 51], [19, 49, 21, 51]], "excluded": {}}
    found = overlap({"trained_on": trained}, LON, LAT)
    assert found["inside"] == 2 and found["placed"] == 4
    assert "2 of 5 test points" in found["warning"] and "32UQD" in found["warning"]


def kept_out(*rings, name="test"):
    """A region of polygons with one ring each, as a manifest names it."""
    points = np.concatenate([np.array(ring) for ring in rings])
    shape = {"type": "MultiPolygon", "coordinates": [[[*ring, ring[0]]] for ring in rings]}
    return {"name": name, "bounds": [*points.min(0), *points.max(0)], "geojson": json.dumps(shape)}


def box(west, south, east, north):
    return [[west, south], [east, south], [east, north], [west, north]]


def test_what_was_kept_out_of_training_is_not_inside():
    trained = {"bounds": [[9, 49, 21, 51]], "excluded": kept_out(box(19, 49, 21, 51))}
    assert overlap({"trained_on": trained}, LON, LAT)["inside"] == 1
    both = {**trained, "excluded": [trained["excluded"], kept_out(box(9, 49, 11, 51))]}
    found = overlap({"trained_on": both}, LON, LAT)
    assert found["inside"] == 0 and found["warning"] is None


@pytest.mark.parametrize(
    "rings",
    [
        [box(8, 49, 9, 51), box(21, 49, 22, 51)],  # on either side
        [box(179, 49, 180, 51), box(-180, 49, -179, 51)],  # cut at 180 degrees
        [[[8, 49], [22, 49], [8, 52]]],  # a corner of its box
        [[[8, 49], [22, 49], [22, 51], [15, 51], [15, 52], [22, 52], [22, 53], [8, 53]]],  # it leaves a notch
    ],
)
def test_points_beside_a_region_that_was_kept_out_are_inside_whatever_its_bounds(rings):
    lon, lat = np.array([17.0]), np.array([50.0 if len(rings) == 2 else 51.5 if len(rings[0]) > 3 else 50.5])
    trained = {"bounds": [[9, 48, 21, 54]], "excluded": [kept_out(*rings)]}
    found = overlap({"trained_on": trained}, lon, lat)
    assert found["inside"] == 1 and "1 of 1 test points" in found["warning"]


def test_a_region_that_is_known_by_its_bounds_alone_takes_no_point_away():
    trained = {"bounds": [[9, 49, 21, 51]], "excluded": [{"name": "a.geojson", "bounds": [9, 49, 11, 51]}]}
    found = overlap({"trained_on": trained}, LON, LAT)
    assert found["inside"] == 2 and "bounds alone of a.geojson" in found["warning"]


@given(st.integers(0, 2**32 - 1))
def test_points_in_polygons_are_those_that_geos_finds(seed):
    rng = np.random.default_rng(seed)
    turn = np.sort(rng.uniform(0, 2 * np.pi, 12))
    rings = [np.stack([x + r * np.cos(turn), r * np.sin(turn)], 1) for x, r in ((-3, rng.uniform(0.5, 2, 12)), (3, 1))]
    hole = 0.3 * np.stack([10 + np.cos(turn), np.sin(turn)], 1)
    shape = shapely.MultiPolygon([shapely.Polygon(rings[0]), shapely.Polygon(rings[1], [hole])])
    lon, lat = rng.uniform(-6, 6, 300), rng.uniform(-3, 3, 300)
    wanted = shapely.contains_xy(shape, lon, lat)
    np.testing.assert_array_equal(covered(shapely.to_geojson(shape), lon, lat), wanted)


@pytest.mark.parametrize(
    ("origin", "lon", "words"),
    [
        ({}, LON, "does not say what it was trained on"),
        ({"trained_on": {"tiles": ["32UQD"]}}, LON, "by its bounds"),
        ({"trained_on": {"bounds": [[0, 0, 1, 1]]}}, LON * math.nan, "no coordinates"),
    ],
)
def test_what_cannot_be_told_is_a_warning_too(origin, lon, words):
    found = overlap(origin, lon, LAT)
    assert found["inside"] is None and words in found["warning"]


def test_random_weights_saw_nothing():
    assert overlap({"kind": "untrained"}, LON, LAT)["warning"] is None
    assert overlap({"kind": "training", "training": {"steps": 0, "shards": {}}}, LON, LAT)["warning"] is None


def test_the_record_of_a_training_here_is_understood_by_its_tiles():
    boxes = {"32UQD": (9.0, 49.0, 11.0, 51.0), "33UXR": (19.0, 49.0, 21.0, 51.0)}
    record = {"sha256": "a", "tiles": list(boxes), "exclude": [kept_out(box(19, 49, 21, 51))]}
    origin = {"training": {"steps": 9, "shards": record}}
    assert overlap(origin, LON, LAT, "", boxes.__getitem__)["inside"] == 1
    same = overlap(origin, LON, LAT, "a", boxes.__getitem__)
    assert same["inside"] == 5 and "this very set" in same["warning"]


def test_a_student_may_have_seen_through_its_teacher_what_it_was_not_trained_on():
    shards = {"sha256": "a", "bounds": [[29, 49, 31, 51]]}
    alone = overlap({"training": {"steps": 9, "shards": shards}}, LON, LAT)
    assert alone["inside"] == 0 and alone["warning"] is None
    found = overlap({"training": {"steps": 9, "shards": shards, "teacher_sha256": "b"}}, LON, LAT)
    assert found["inside"] == 0 and "where that one was trained" in found["warning"]
