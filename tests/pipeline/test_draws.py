"""A model whose profile draws by lot, through the whole job: the same pixels however they are come by."""

import dataclasses
import shutil

import numpy as np
import pytest
import rasterio
from low_strips import low_strips
from rasterio.windows import Window

from pipeline import verify as verb
from pipeline.demo import untrained
from pipeline.dpixels import dpixels
from pipeline.embed import embed, incomplete
from pipeline.embed_folder import embed_dpixels
from pipeline.planning import EmbedOptions
from pipeline.quote import expected_tokens, quote
from pipeline.verify import verify
from transforms.draws import Place
from transforms.inventory import read_tile
from transforms.regions import region_from_bbox
from transforms.samplers import SAMPLERS
from transforms.scenes import S1, S2

TILE = "32TQR"


@pytest.fixture(scope="module")
def drawing(tmp_path_factory) -> str:
    """The shipped model's weights under the sampler of v1.0."""
    pytest.importorskip("torch")
    profile = dataclasses.replace(
        untrained.untrained_profile(), name="untrained-drawn", sampler="v1.0", sampler_bins=(40,),
        randomness="counter", empty_modality="all-steps",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("drawing") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untrained, "untrained_profile", lambda: profile)
        untrained.write(path)
    return str(path)


def run(world, model, out, **options):
    chosen = {"region": region_from_bbox(world.bbox), "block_px": 512, "tiles": (TILE,)} | options
    said: list[str] = []
    summary = embed(world.inv, model, str(out), EmbedOptions(**chosen), "embed", said.append, False)
    assert not incomplete(summary)
    return said


def published(world, out):
    """Codes and scales of the island."""
    row, col, height, width = world.earth.island(TILE)
    found = []
    for key in ("embeddings", "scales"):
        with rasterio.open(next((out / "2024" / TILE).glob(f"*/{key}.tif"))) as file:
            found.append(file.read(window=Window(col, row, width, height)))
    return found


def assert_same(got, wanted):
    assert np.isfinite(wanted[1]).any()
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def done(sparse, drawing, tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "out"
    run(sparse, drawing, out)
    return out


@pytest.mark.slow
def test_blocks_of_another_size_draw_the_same(sparse, drawing, done, tmp_path):
    run(sparse, drawing, tmp_path / "out", block_px=256)
    assert_same(published(sparse, tmp_path / "out"), published(sparse, done))


@pytest.mark.slow
def test_strips_draw_as_whole_blocks_do(sparse, drawing, done, tmp_path, monkeypatch):
    low_strips(monkeypatch)
    said = run(sparse, drawing, tmp_path / "out")
    assert any("strips of 128 rows" in line for line in said), said
    assert_same(published(sparse, tmp_path / "out"), published(sparse, done))


@pytest.mark.slow
def test_verify_draws_as_embed_did(done):
    found = verify(str(done), recompute=1, seed=0, device="cpu")
    assert found["ok"], found["findings"]
    assert found["windows_recomputed"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [("row_px", 0), *(pytest.param(*c, marks=pytest.mark.slow) for c in (("tile", "32TQQ"), ("period", "2023")))],
)
def test_verify_sees_other_draws(done, monkeypatch, field, value):
    monkeypatch.setattr(verb, "Place", lambda *at: dataclasses.replace(Place(*at), **{field: value}))
    found = verify(str(done), recompute=1, seed=0, device="cpu")
    assert any(f["check"] == "recompute" and "codes differ" in f["detail"] for f in found["findings"])


def test_a_folder_of_d_pixels_draws_by_its_own_name(sparse, drawing, tmp_path):
    window = ",".join(map(str, sparse.earth.island(TILE)))
    dpixels(sparse.inv, "v2", TILE, window, str(tmp_path / "a"), pytest.fail)
    (tmp_path / "elsewhere").mkdir()
    for copy in ("b", "elsewhere/a"):
        shutil.copytree(tmp_path / "a", tmp_path / copy)
    codes = {}
    for folder in ("a", "b", "elsewhere/a"):
        out = tmp_path / f"out-{folder.replace('/', '-')}"
        embed_dpixels(str(tmp_path / folder), drawing, str(out), "cpu", pytest.fail)
        codes[folder] = np.load(out / f"{folder[-1]}.npy")
    np.testing.assert_array_equal(codes["a"], codes["elsewhere/a"])
    assert (codes["a"] != codes["b"]).any(-1)[codes["a"][..., 0] != -128].mean() > 0.9


# ---- the quote


def test_a_quote_counts_the_rows_of_the_model_s_own_sampler(world, drawing):
    assert quote(world.inv, drawing, (TILE,))["tokens_per_pixel"] == 80
    ours = quote(world.inv, world.model, (TILE,))["tokens_per_pixel"]
    assert ours == sum(expected_tokens(read_tile(world.inv, TILE), SAMPLERS["v2"]))


def test_tokens_are_expected_from_clear_days_and_passes_by_each_sampler_s_bins(world):
    scenes = read_tile(world.inv, TILE)
    clear = [dataclasses.replace(s, cloud_cover=0.0) for s in scenes]
    s2 = len({s.day for s in scenes if s.sensor == S2 and s.kept})
    s1 = len({(s.day, s.orbit) for s in scenes if s.sensor == S1 and s.kept})
    assert s2 > 8 and s1 > 8
    for name in ("v1.1", "v2"):
        assert expected_tokens(clear, SAMPLERS[name]) == (-(-s2 // 8) * 8, -(-s1 // 8) * 8)
    optical = [s for s in clear if s.sensor == S2]
    rows = {name: expected_tokens(optical, sampler)[1] for name, sampler in SAMPLERS.items()}
    assert rows == {"v1.0": 40, "v1.1": 8, "v2": 1}
    assert expected_tokens(clear, SAMPLERS["v1.0"]) == (40, 40)
