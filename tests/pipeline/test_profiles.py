"""A profile against an inventory and an output folder: what fits is made by its rules, the rest is refused in words."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import World, contents
from rasterio.windows import Window

from model.errors import BadInput
from model.families import names, profile_for
from model.modelfile import open_model
from model.profile import ES_C1, ES_L2A, OPERA_RTC, PC_L2A, PC_RTC, S2_BANDS
from pipeline.cli import run as program
from pipeline.demo import untrained
from pipeline.dpixels import dpixels
from pipeline.embed import embed, incomplete
from pipeline.planning import EmbedOptions, check_product, check_sources
from pipeline.quote import quote
from transforms.dpixels import LAYOUT, load
from transforms.inventory import read_header, read_tile, write_inventory
from transforms.periods import period_of
from transforms.regions import region_from_bbox
from transforms.stac import product_record
from transforms.storage import open_store

TILE = "33TUL"
TEN_M = ("B04", "B02", "B03", "B08")
# What the inventories of these tests say that the planet's scenes are.
COMBINED = [(ES_C1, PC_RTC), (ES_L2A, PC_RTC), (PC_L2A, PC_RTC), (ES_L2A, OPERA_RTC), (PC_L2A, OPERA_RTC)]
FITTING = (
    {name: [(PC_L2A, PC_RTC)] for name in names() if name.startswith(("v1.0", "v1.1-mpc"))}
    | {name: [(ES_L2A, OPERA_RTC)] for name in ("v1.1-aws", "v1.1-aws+nearest")}
    | {"v2": COMBINED[:3]}
)


@pytest.fixture(scope="module")
def inventories(world, tmp_path_factory) -> dict[tuple[str, str], str]:
    """The planet's inventory, with its scenes given to other sources."""
    folder = tmp_path_factory.mktemp("inventories")
    head = read_header(world.inv)
    found = {}
    for n, (optical, radar) in enumerate(COMBINED):
        called = {ES_C1: optical, PC_RTC: radar}
        tiles = {
            t: [dataclasses.replace(s, source=called[s.source]) for s in read_tile(world.inv, t)] for t in head.tiles
        }
        sources = [dataclasses.replace(s, name=called[s.name]) for s in head.sources]
        write_inventory(folder / f"{n}.parquet", head.period, head.frozen, tiles, sources)
        found[optical, radar] = str(folder / f"{n}.parquet")
    return found


def model_of(world, name):
    """The shipped model as if its weights were of a family."""
    return dataclasses.replace(open_model(world.model), profile=profile_for(name, 192))


def run(world: World, model: str, out: Path) -> dict:
    options = EmbedOptions(region=region_from_bbox(world.bbox), block_px=512, tiles=(TILE,))
    return embed(world.inv, model, str(out), options, "embed", lambda _: None, False)


# ---- sources


def test_the_families_of_these_tests_are_all_there_are():
    assert set(FITTING) == set(names())


@pytest.mark.parametrize(("name", "sources"), list(itertools.product(FITTING, COMBINED)), ids=str)
def test_a_model_takes_an_inventory_of_its_own_sources_alone(world, inventories, name, sources):
    # Trap T2: pixels of the other source under one set of statistics give plausible numbers.
    model, inv = model_of(world, name), read_header(inventories[sources])
    if sources in FITTING[name]:
        check_sources(model, inv)
        return
    with pytest.raises(BadInput) as error:
        check_sources(model, inv)
    said, profile = str(error.value), model.profile
    strange = set(sources) - {*profile.s2_sources, *profile.s1_sources}
    for words in (profile.name, model.name, *strange):
        assert words in said
    if strange:
        assert inv.path in said
        assert all(s in said for s in (*profile.s2_sources, *profile.s1_sources))


def test_the_two_sets_of_v1_1_share_neither_a_source_nor_a_statistic():
    # Trap T2: they differ by a few per cent, and nothing but the profile keeps them apart.
    mpc, aws = profile_for("v1.1-mpc", 192), profile_for("v1.1-aws", 192)
    assert not {*mpc.s2_sources, *mpc.s1_sources} & {*aws.s2_sources, *aws.s1_sources}
    for field in ("s2_mean", "s2_std", *(f"s1_{o}_{s}" for o in ("ascending", "descending") for s in ("mean", "std"))):
        assert not set(getattr(mpc, field)) & set(getattr(aws, field)), field


@pytest.mark.parametrize(
    ("name", "sources", "words"),
    [
        ("v1.1-mpc", (ES_C1, PC_RTC), (ES_C1, PC_L2A, "Build the inventory")),
        ("v1.1-mpc+nearest", (ES_L2A, PC_RTC), (ES_L2A, PC_L2A, "Build the inventory")),
        ("v1.1-aws", (PC_L2A, PC_RTC), (PC_L2A, PC_RTC, ES_L2A, OPERA_RTC)),
        ("v1.1-mpc", (PC_L2A, OPERA_RTC), (OPERA_RTC, PC_RTC, "Build the inventory")),
    ],
)
def test_embed_and_quote_refuse_it_before_any_work(
    world, inventories, tmp_path, monkeypatch, capfd, name, sources, words
):
    # Traps T2 and T22: OPERA's 30 m pixels come to 10 m by another rule than Planetary Computer's.
    for module in ("planning", "quote"):
        monkeypatch.setattr(f"pipeline.{module}.open_model", lambda _: model_of(world, name))
    inv, out = inventories[sources], tmp_path / "out"
    assert program(["embed", inv, "--model", world.model, "--out", str(out)]) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert all(w in said for w in words), said
    assert not out.exists()
    with pytest.raises(BadInput, match=f"profile {name}".replace("+", r"\+")):
        quote(inv, world.model)


def test_a_rule_that_no_code_follows_is_refused_by_embed_and_quote(world, inventories, tmp_path, monkeypatch, capfd):
    rule = "the days under 0.01 % of the region are dropped"
    for module in ("planning", "quote"):
        model = model_of(world, "v2")
        odd = dataclasses.replace(model, profile=dataclasses.replace(model.profile, coverage_rule=rule))
        monkeypatch.setattr(f"pipeline.{module}.open_model", lambda _, m=odd: m)
    inv = inventories[PC_L2A, PC_RTC]
    assert program(["embed", inv, "--model", world.model, "--out", str(tmp_path / "out")]) == 2
    said = capfd.readouterr().err
    assert all(w in said for w in ("profile v2", "coverage_rule", rule, "--dpixels")), said
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadInput, match="coverage_rule"):
        quote(inv, world.model)


def test_an_inventory_without_radar_fits_only_a_profile_that_declares_optical_alone(world, tmp_path):
    # Facts, 1.3: a tenth of the land has no radar at all in a year; no published profile says what to do then.
    head = read_header(world.inv)
    optical = [s for s in head.sources if s.name == ES_C1]
    scenes = {t: [s for s in read_tile(world.inv, t) if s.source == ES_C1] for t in head.tiles}
    write_inventory(tmp_path / "i.parquet", head.period, head.frozen, scenes, optical)
    inv, model = read_header(tmp_path / "i.parquet"), model_of(world, "v2")
    with pytest.raises(BadInput, match=f"no radar source .*v2 .*wants one of {PC_RTC}"):
        check_sources(model, inv)
    alone = dataclasses.replace(model, profile=dataclasses.replace(model.profile, s1_sources=()))
    check_sources(alone, inv)
    with pytest.raises(BadInput, match=PC_RTC):  # and such a one takes no radar
        check_sources(alone, head)


def test_d_pixels_of_an_inventory_without_radar_are_made_with_a_warning(world, tmp_path):
    head = read_header(world.inv)
    scenes = {t: [s for s in read_tile(world.inv, t) if s.source == ES_C1] for t in head.tiles}
    sources = [s for s in head.sources if s.name == ES_C1]
    write_inventory(tmp_path / "i.parquet", head.period, head.frozen, scenes, sources)
    said: list[str] = []
    window = ",".join(map(str, world.earth.island(TILE)))
    got = dpixels(str(tmp_path / "i.parquet"), "v2", TILE, window, str(tmp_path / "d"), said.append)
    assert got["warnings"] == said
    assert "never searched for radar" in said[0] and "v2 does not declare" in said[0]
    assert load(tmp_path / "d", pytest.fail).sar_ascending.shape[0] == 0


def test_d_pixels_of_a_shorter_period_are_made_with_a_warning(world, inventories, tmp_path):
    head = read_header(inventories[PC_L2A, PC_RTC])
    spring = period_of("2024-03-01/2024-05-31")
    scenes = {t: [s for s in read_tile(head.path, t) if spring.start <= s.day <= spring.end] for t in head.tiles}
    write_inventory(tmp_path / "i.parquet", spring, head.frozen, scenes, head.sources)
    said: list[str] = []
    window = ",".join(map(str, world.earth.island(TILE)))
    got = dpixels(str(tmp_path / "i.parquet"), "v2", TILE, window, str(tmp_path / "d"), said.append)
    assert "92 days, not twelve months" in got["warnings"][0]
    assert said == got["warnings"]
    days = load(tmp_path / "d", pytest.fail).doys
    assert days.min() >= 61 and days.max() <= 152


def test_d_pixels_made_elsewhere_are_embedded_whatever_their_radar_was(world, inventories, tmp_path, monkeypatch):
    """The way out that the refusal gives."""
    window = ",".join(map(str, world.earth.island(TILE)))
    dpixels(inventories[PC_L2A, PC_RTC], "v2", TILE, window, str(tmp_path / "d"), pytest.fail)
    opera = dataclasses.replace(profile_for("v2", 128), s1_resampling="bilinear", s1_arithmetic="float32")
    model = dataclasses.replace(open_model(world.model), profile=opera)
    monkeypatch.setattr("pipeline.planning.open_model", lambda _: model)
    argv = ["embed", "--dpixels", str(tmp_path / "d"), "--model", world.model, "--out", str(tmp_path / "e")]
    assert program(argv) == 0
    assert (np.load(tmp_path / "e/d.npy") != -128).any()


# ---- the dpixels verb


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in ("v1.0-qat", "v1.1-mpc+nearest") else [pytest.mark.slow])
        for n in names()
        if (PC_L2A, PC_RTC) in FITTING[n]
    ],
)
def test_the_dpixels_verb_knows_every_family_and_variant(world, inventories, tmp_path, name):
    row, col, height, width = world.earth.island(TILE)
    window = f"{row + 3},{col + 5},{height // 2},{width // 3}"
    got = dpixels(inventories[PC_L2A, PC_RTC], name, TILE, window, str(tmp_path), pytest.fail)
    pixels = load(tmp_path, pytest.fail)
    assert pixels.bands.shape == (got["s2_dates"], height // 2, width // 3, len(S2_BANDS))
    truth = world.earth.observations(TILE, 2024)[3 : 3 + height // 2, 5 : 5 + width // 3]
    assert np.array_equal(pixels.masks.sum(0), truth)


def test_a_variant_s_d_pixels_differ_in_the_20_m_bands_alone(world, inventories, tmp_path):
    # Trap T1.
    window = ",".join(map(str, world.earth.island(TILE)))
    made = {}
    for name in ("v1.1-mpc", "v1.1-mpc+nearest"):
        dpixels(inventories[PC_L2A, PC_RTC], name, TILE, window, str(tmp_path / name), pytest.fail)
        made[name] = load(tmp_path / name, pytest.fail)
    bilinear, nearest = made.values()
    for field in LAYOUT[1:]:
        np.testing.assert_array_equal(getattr(bilinear, field), getattr(nearest, field))
    differ = ((bilinear.bands != nearest.bands) & (bilinear.masks[..., None] > 0)).any((0, 1, 2))
    assert {band for band, d in zip(S2_BANDS, differ, strict=True) if d} == set(S2_BANDS) - set(TEN_M)


@pytest.mark.parametrize(
    ("name", "sources", "words"),
    [
        ("v1.1-mpc", (ES_C1, PC_RTC), (ES_C1, PC_L2A, PC_RTC)),
        ("v1.1-mpc+nearest", (PC_L2A, OPERA_RTC), (OPERA_RTC, PC_L2A, PC_RTC)),
        ("v1.1-aws", (PC_L2A, PC_RTC), (PC_L2A, ES_L2A, OPERA_RTC)),
        ("v1.1", (PC_L2A, PC_RTC), names()),
        ("v2+nearest", (PC_L2A, PC_RTC), ("v2+nearest", "none")),
    ],
)
def test_the_dpixels_verb_refuses_a_profile_that_does_not_fit(inventories, tmp_path, capfd, name, sources, words):
    argv = ["dpixels", inventories[sources], "--profile", name, "--tile", TILE, "--window", "0,0,8,8"]
    assert program([*argv, "--out", str(tmp_path / "d")]) == 2
    said = capfd.readouterr().err
    assert all(w in said for w in (name, *words)), said
    assert not (tmp_path / "d").exists()


# ---- the same weights under a variant


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("plain") / "model.onnx"
    untrained.write(path)
    return str(path)


@pytest.fixture(scope="module")
def nearest_model(tmp_path_factory) -> str:
    """The weights of `plain_model` for d-pixels whose 20 m bands come by nearest neighbour."""
    plain = untrained.untrained_profile()
    profile = dataclasses.replace(plain, name=f"{plain.name}+nearest", s2_resampling="nearest")
    path = tmp_path_factory.mktemp("nearest") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untrained, "untrained_profile", lambda: profile)
        untrained.write(path)
    return str(path)


def published(out: Path, island: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    row, col, height, width = island
    found = {}
    for key in ("embeddings", "scales", "observations", "reasons"):
        with rasterio.open(next((out / "2024" / TILE).glob(f"*/{key}.tif"))) as file:
            found[key] = file.read(window=Window(col, row, width, height))
    return found


@pytest.mark.slow
def test_the_same_weights_and_scenes_under_nearest_are_other_codes_and_another_product(
    world, plain_model, nearest_model, tmp_path
):
    # Trap T1: never mixed in one output.
    plain, near = open_model(plain_model), open_model(nearest_model)
    assert plain.weights_sha256 == near.weights_sha256 and plain.name == near.name
    for model, out in ((plain_model, "plain"), (nearest_model, "near")):
        assert not incomplete(run(world, model, tmp_path / out))
    a, b = (published(tmp_path / out, world.earth.island(TILE)) for out in ("plain", "near"))
    there = np.isfinite(a["scales"][0])
    for key in ("observations", "reasons"):
        np.testing.assert_array_equal(a[key], b[key])
    np.testing.assert_array_equal(there, np.isfinite(b["scales"][0]))
    assert (a["embeddings"] != b["embeddings"]).any(0)[there].mean() > 0.5
    before = contents(tmp_path / "plain")
    with pytest.raises(BadInput, match=r"holds another product .*profile: there untrained, now untrained\+nearest"):
        run(world, nearest_model, tmp_path / "plain")
    assert contents(tmp_path / "plain") == before


@pytest.mark.parametrize("name", [n for n in names() if "+" in n])
def test_a_folder_of_the_plain_profile_is_refused_to_its_variant_and_back(tmp_path, name):
    plain = name.partition("+")[0]
    records = [product_record("m-1a2b3c4d", "0" * 64, profile_for(n, 192)) for n in (plain, name)]
    for n, (first, second) in enumerate([records, records[::-1]]):
        store = open_store(str(tmp_path / str(n)))
        check_product(store, first)
        check_product(store, first)
        with pytest.raises(BadInput) as error:
            check_product(store, second)
        assert f"profile: there {first['profile']}, now {second['profile']};" in str(error.value)
        assert "profile_digest" in str(error.value)
