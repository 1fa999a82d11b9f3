import datetime as dt
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.errors import BadInput
from model.probing import baselines
from model.probing.labels import read_labels
from model.profile import S2_BANDS
from model.shards import open_shards
from pipeline.real import parcels, points, presto, pretrain, probe_set, sets
from pipeline.real.parcels import numbers_of
from pipeline.training import read_config
from transforms.radar import scale_s1

SHARED = Path(__file__).parents[2] / "../shared/real-data"


def real(folder):
    there = (SHARED / folder).is_dir()
    return pytest.mark.skipif(not there, reason=f"no {folder} in ../shared/real-data")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def written(out):
    """Every set is read once."""
    done = {}

    def get(name):
        if name not in done:
            sets.build(SHARED, out, [name])
            shards = open_shards(out / name, check=True)
            done[name] = shards, read_labels(out / name, len(shards))
        return done[name]

    return get


def test_parcel_means_become_whole_dn_without_the_offset():
    means = np.full((1, 4, 10), 2000.0)
    means[0, 0, 0], means[0, 1] = 1000.5, 999.4
    means[0, 2, 3], means[0, 3] = 0.2, np.nan
    values, valid = numbers_of(means)
    assert valid.tolist() == [[True, True, False, False]]
    assert values[0, 0].tolist() == [1] + [1000] * 9
    assert values[0, 1].tolist() == [999] * 10  # below the offset it stays
    assert not values[0, 2:].any()


def test_decibels_are_scaled_as_the_profile_does_it():
    decibels = np.array([-12.14, -24.99, -25.0, -49.9, np.nan, 3.0])
    got = probe_set.radar_of(decibels)
    wanted = [int((2 * d + 50) * 200) if d > -25 else 0 for d in decibels]
    assert np.abs(got - wanted).max() <= 1
    assert got[2:5].tolist() == [0, 0, 0]


def test_cells_cut_the_globe_without_a_double_one_at_zero():
    got = points.cells(np.array([0.1, -0.1, 0.3, 33.6]), np.array([0.1, 0.1, -0.1, 5.0]), 0.25).tolist()
    assert got == ["+0+0", "-1+0", "+1-1", "+134+20"]


@real(parcels.FOLDER)
@pytest.mark.parametrize("region", parcels.REGIONS)
def test_parcels_hold_a_year_of_the_files_numbers_and_gaps(written, region):
    shards, labels = written(region)
    first, last = parcels.PERIODS[region]
    batch = shards.take(np.arange(len(shards)))
    rows = (SHARED / parcels.FOLDER / f"sample_{region}.csv").read_text(encoding="utf-8-sig").splitlines()
    header = rows[0].split(",")
    days = [d for d in (first + dt.timedelta(n) for n in range((last - first).days + 1)) if f"b02_{d:%Y%m%d}" in header]
    assert len(shards) == 200 and batch.s2.shape[1] == len(days)
    assert not batch.s1_valid.any()
    rng = np.random.default_rng(1)
    for i, t in zip(rng.integers(0, 200, 60), rng.integers(0, len(days), 60), strict=True):
        cells = rows[1 + i].split(",")
        texts = [cells[header.index(f"{band.lower()}_{days[t]:%Y%m%d}")] for band in S2_BANDS]
        assert batch.s2_doy[i, t] == days[t].timetuple().tm_yday
        if any(not x or float(x) < 0.5 for x in texts):
            assert not batch.s2_valid[i, t] and not batch.s2[i, t].any()
        else:
            dn = [int(float(x) + 0.5) for x in texts]
            assert batch.s2[i, t].tolist() == [v - 1000 if v >= 1000 else v for v in dn] and batch.s2_valid[i, t]
    assert shards.manifest.period == f"{first}_{last}"
    assert 0.3 < batch.s2_valid.mean() < 0.6
    assert labels.test is None and len(set(labels.group.tolist())) == len(labels)


@real(parcels.FOLDER)
def test_classes_that_are_too_small_have_no_label_and_stay_in_the_set(written):
    shards, labels = written("us")
    assert {c: int((labels.label == c).sum()) for c in labels.classes} == {
        "greenhouse": 141, "garlic": 28, "apple": 20, "peach": 9,
    }  # fmt: skip
    assert len(labels) == 198 < len(shards)
    assert len(written("nh")[1].classes) == 7


@real(parcels.FOLDER)
def test_garlic_is_green_in_may_and_harvested_in_june(written):
    shards, labels = written("yc")
    months = baselines.monthly(shards.take(labels.record)).reshape(len(labels), 12, 10)
    red, near = months[..., 0], months[..., 3]
    greenness = ((near - red) / (near + red))[labels.label == "garlic"].mean(0)
    assert greenness[4] > greenness[5] + 0.2 > greenness[0] + 0.1


@real(points.FOLDER)
def test_points_hold_the_files_months_in_the_profiles_order(written):
    shards, labels = written("points")
    table = pq.read_table(SHARED / points.FOLDER / points.FILE)
    batch = shards.take(np.arange(len(shards)))
    assert batch.s2.shape == (500, 12, 10) and batch.s1.shape == (500, 12, 2)
    assert batch.s2_doy[0].tolist()[:2] == [350, 15]  # the middle of December, 2016, then of January
    for k in (0, 7):
        b04, b8a = (table[f"OPTICAL-{b}-ts{k}-{r}m"].to_numpy() for b, r in (("B04", 10), ("B8A", 20)))
        seen = batch.s2_valid[:, k]
        assert (seen == (b04 != 65535)).all()
        assert (batch.s2[seen, k, 0] == b04[seen]).all() and (batch.s2[seen, k, 4] == b8a[seen]).all()
        vv = table[f"SAR-VV-ts{k}-20m"].to_numpy().astype(float)
        decibels = 20 * np.log10(vv) - 83
        there = (vv != 65535) & (decibels > -24.9)
        np.testing.assert_allclose((batch.s1[there, k, 0] / 200 - 50) / 2, decibels[there], atol=0.003)
    assert (batch.s1_valid == (batch.s1 != 0).any(-1)).all()
    assert (shards.records(np.arange(500)).lon == table["lon"].to_numpy()).all()
    cell = points.cells(labels.lon, labels.lat, points.CELL)
    assert (labels.group == cell).all() and len(labels.classes) == 6


@real(presto.FOLDER)
@pytest.mark.parametrize(("name", "tested", "groups"), [("fuel-moisture", 735, 150), ("algae-blooms", 345, 0)])
def test_prestos_sets_keep_their_own_split_and_all_inputs(written, name, tested, groups):
    shards, labels = written(name)
    folder = SHARED / presto.FOLDER / presto.SETS[name]
    x, target = np.load(folder / "s1_s2_era5_srtm.npy"), np.load(folder / "target.npy")
    batch = shards.take(np.arange(len(shards)))
    assert (labels.label == target).all() and labels.test.sum() == tested
    assert not groups or len(set(labels.group.tolist())) == groups
    for band, column in (("B04", 4), ("B02", 2), ("B12", 12)):
        got = batch.s2[..., S2_BANDS.index(band)].astype(float)
        assert np.abs(got - x[..., column]).max() <= 0.5
    there = batch.s1_valid
    assert (batch.s1[there] == scale_s1((10 ** (x[..., :2] / 10)).astype(np.float32))[there]).all()
    with np.load(shards.folder / probe_set.LATE) as late:
        np.testing.assert_allclose(late["x"][..., 10], x[..., 11], rtol=1e-6)  # B11: B09 is left out
        assert late["x"].shape[-1] == 17 and (late["month"] == np.load(folder / "month.npy")).all()


@real(parcels.FOLDER)
def test_the_manifest_says_where_the_numbers_come_from_and_what_departs(written):
    shards, _ = written("nj")
    origin = shards.manifest.origin
    assert list(origin["files"]) == ["sample_nj.csv"] and len(origin["files"]["sample_nj.csv"]) == 64
    assert any("offset of 1000" in note for note in origin["notes"])
    assert any("dummy" in note for note in origin["notes"])


@real(parcels.FOLDER)
def test_the_command_writes_sets_and_tells_of_them(tmp_path, capsys):
    assert sets.main([str(SHARED), str(tmp_path), "--sets", "nj", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["sets"]["nj"]
    assert (told["records"], told["labels"], told["task"]) == (200, 183, "classification")
    assert sets.main([str(SHARED), str(tmp_path), "--sets", "nj"]) == 2  # there already
    assert "delete it" in capsys.readouterr().err


def test_a_set_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(BadInput, match="'mars': there are us, yc, nj, nh, points"):
        sets.build(SHARED, tmp_path, ["mars"])


@pytest.mark.parametrize("name", ["us", "points", "algae-blooms"])
def test_data_that_are_not_there_are_named(tmp_path, name):
    with pytest.raises(BadInput, match="no file"):
        sets.build(tmp_path / "nothing", tmp_path / "out", [name])


@pytest.mark.parametrize("training", pretrain.TRAININGS)
def test_every_training_has_a_config_that_is_understood(training):
    config = read_config(pretrain.CONFIGS / f"{training}.toml", ["data.shards=nowhere"])
    assert config.encoder.name == f"real-{training}" and config.encoder.notes
    assert config.run.device == "cpu" and config.encoder.statistics == "shards"


def test_every_set_belongs_to_one_training():
    members = [name for names in pretrain.TRAININGS.values() for name in names]
    assert sorted(members) == sorted(sets.READERS) and set(pretrain.BY_DEFAULT) <= set(members)


def test_a_run_without_the_data_says_so_and_fails_nothing(tmp_path, capsys):
    assert pretrain.main([str(tmp_path / "none"), str(tmp_path / "out")]) == 0
    assert "skipped: no folder" in capsys.readouterr().out


@real(points.FOLDER)
@pytest.mark.slow
def test_a_training_of_a_few_steps_goes_the_whole_way(tmp_path, capsys):
    """Two steps: sets, training, export, gate, encoders before their first step, probe, table. No claim on scores."""
    pytest.importorskip("torch")
    arguments = [str(SHARED), str(tmp_path), "--sets", "points", "--seeds", "2", "--set", "schedule.steps=2"]
    assert pretrain.main([*arguments, "--set", "projector.widths=[32]", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["trainings"]["points"]["gate"]
    probed = found["probes"]["points"]
    assert {"untrained encoder", "monthly composites"} <= {s["source"] for s in probed["scores"]}
    assert probed["models"][0]["name"].startswith("real-points-")
    assert any("this very set" in words or "very set" in words for words in probed["warnings"])
    assert {d["head"] for d in found["better"]["points"]} == {"knn5", "linear", "mlp"}
    assert (tmp_path / "probes/points/labels.png").exists()
