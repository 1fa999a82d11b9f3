"""The main job on a small planet: what it publishes, twice, in parts, on two runners, and with broken files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import World, contents, fewer_dates
from low_strips import low_strips

from model.errors import BadInput
from pipeline import inventory
from pipeline.dry_run import dry_run
from pipeline.embed import embed, incomplete
from pipeline.engines import Local
from pipeline.planning import EmbedOptions
from pipeline.status import status
from pipeline.verify import verify
from transforms.inventory import read_header, read_tile, write_inventory
from transforms.periods import period_of
from transforms.regions import region_from_bbox
from transforms.stac_index import read_items_parquet


def run(world: World, out: Path, inv: str | None = None, **options) -> dict:
    chosen = {"region": region_from_bbox(world.bbox), "block_px": 512} | options
    return embed(inv or world.inv, world.model, str(out), EmbedOptions(**chosen), "embed", lambda _: None, False)


def pixels(out: Path, tile: str, window: tuple[int, int, int, int], period: str = "2024") -> dict[str, np.ndarray]:
    row, col, height, width = window
    found = {}
    for key in ("embeddings", "scales", "observations", "reasons", "preview"):
        with rasterio.open(next((out / period / tile).glob(f"*/{key}.tif"))) as f:
            found[key] = f.read(window=rasterio.windows.Window(col, row, width, height))
    return found


@pytest.fixture(scope="module")
def done(sparse, tmp_path_factory):
    """An undisturbed run over the island in blocks of 512 px."""
    out = tmp_path_factory.mktemp("done") / "out"
    summary = run(sparse, out)
    assert not incomplete(summary)
    return out


def dates_seen(world: World, tile: str) -> np.ndarray:
    """Dates of the inventory on which a pixel of the island was clear."""
    days: dict[int, np.ndarray] = {}
    for scene in read_tile(world.inv, tile):
        if scene.kept and scene.sensor == "S2":
            clear = world.earth.clear(tile, scene.id)
            days[scene.day] = days[scene.day] | clear if scene.day in days else clear
    return np.sum(list(days.values()), axis=0, dtype=np.uint16)


def is_whole(got: dict[str, np.ndarray], truth: np.ndarray) -> None:
    there = np.isfinite(got["scales"][0])
    assert there.any()
    assert ((got["embeddings"] == -128).all(0) == ~there).all()
    assert ((got["embeddings"] == -128).any(0) == ~there).all()
    inside = (got["reasons"][0] & 8) == 0
    assert np.array_equal(got["observations"][0][inside], truth[inside])
    assert ((got["reasons"][0] & 1) > 0)[inside].tolist() == (truth == 0)[inside].tolist()


def test_a_tile_is_whole_and_agrees_with_the_planet(sparse, done):
    for tile in sparse.earth.tiles:
        is_whole(pixels(done, tile, sparse.earth.island(tile)), dates_seen(sparse, tile))


@pytest.mark.slow
def test_every_date_of_the_year_counts(world, tmp_path):
    run(world, tmp_path, tiles=("32TQR",))
    is_whole(pixels(tmp_path, "32TQR", world.earth.island("32TQR")), world.earth.observations("32TQR", 2024))


def test_verify_finds_a_finished_output_sound(done):
    found = verify(str(done), recompute=3, seed=1, device="cpu")
    assert found["ok"], found["findings"]
    assert found["windows_recomputed"] == 3


def test_verify_sees_one_changed_byte(sparse, done, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    path = next((out / "2024" / "32TQR").glob("*/embeddings.tif"))
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    found = verify(str(out), recompute=0, seed=0, device="cpu")
    assert not found["ok"]
    assert any(f["check"] == "embeddings" and "crc32c" in f["detail"] for f in found["findings"])


@pytest.mark.slow
def test_verify_recomputes_and_sees_codes_that_another_input_would_give(sparse, done, tmp_path):
    """Checksums and item are made to fit: only the sources tell."""
    out = tmp_path / "out"
    shutil.copytree(done, out)
    inv = next(out.glob("_inputs/*.parquet"))
    kept = tmp_path / "one-less.parquet"
    scene = next(s for s in read_tile(str(inv), "32TQR") if s.kept and s.sensor != "S2")
    inventory.amend(str(inv), [(scene.id, None)], "to see what verify says", str(kept))
    shutil.copy(kept, inv)
    found = verify(str(out), recompute=6, seed=0, device="cpu")
    assert any(f["check"] == "recompute" and "differ" in f["detail"] for f in found["findings"]), [
        f["detail"] for f in found["findings"]
    ]


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(sparse, done, tmp_path):
    run(sparse, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(done)


@pytest.mark.slow
def test_processes_give_the_bytes_of_one_process(sparse, done, tmp_path):
    run(sparse, tmp_path / "out", engine=Local(2))
    assert contents(tmp_path / "out") == contents(done)


def of_tile(out: Path, tile: str) -> dict[str, str]:
    """What a run of one tile can be held against one of all tiles: the tile's own files."""
    return {k: v for k, v in contents(out).items() if k.startswith(f"2024/{tile}/")}


@pytest.mark.slow
@pytest.mark.parametrize("block_px", [256, 2048])
def test_another_block_size_gives_the_same_pixels(sparse, done, tmp_path, block_px):
    run(sparse, tmp_path / "out", block_px=block_px, tiles=("32TQR",))
    for tile in ("32TQR",):
        row, col, height, width = sparse.earth.island(tile)
        window = (max(row - 200, 0), max(col - 200, 0), height + 300, width + 300)
        mine, theirs = pixels(tmp_path / "out", tile, window), pixels(done, tile, window)
        for key in mine:
            assert np.array_equal(mine[key], theirs[key], equal_nan=key == "scales"), (tile, key)


@pytest.mark.slow
def test_low_strips_give_the_same_bytes(sparse, done, tmp_path, monkeypatch):
    low_strips(monkeypatch)
    said: list[str] = []
    options = EmbedOptions(region=region_from_bbox(sparse.bbox), block_px=512, tiles=("32TQR",))
    embed(sparse.inv, sparse.model, str(tmp_path / "out"), options, "embed", said.append, False)
    assert any("strips of 128 rows" in line for line in said), said
    assert of_tile(tmp_path / "out", "32TQR") == of_tile(done, "32TQR")


def test_a_second_run_does_no_block(sparse, done, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    before = contents(out)
    summary = run(sparse, out)
    assert summary["totals"]["blocks_done"] == 0
    assert summary["totals"]["tiles_published"] == len(sparse.earth.tiles)
    assert not incomplete(summary)
    assert contents(out) == before


def test_overlapping_tiles_of_a_zone_agree_where_their_observations_do(sparse, done):
    """32TQQ and 32TQR share a grid; one date is in only one of them."""
    got = {t: pixels(done, t, sparse.earth.island(t)) for t in ("32TQQ", "32TQR")}
    a, b = got["32TQQ"], got["32TQR"]
    assert a["scales"].shape == b["scales"].shape
    same = (a["observations"] == b["observations"]).all(0)
    assert same.any() and not same.all()
    assert (a["embeddings"] == b["embeddings"]).all(0)[same].all()
    assert (a["embeddings"] != b["embeddings"]).any(0)[~same].any()


def test_a_second_period_goes_into_the_same_output(sparse, done, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    before = {k: v for k, v in contents(out).items() if k.startswith("2024/")}
    summary = run(sparse, out, inv=sparse.inv_2025, tiles=("33TUL",))
    assert not incomplete(summary)
    after = contents(out)
    assert before.items() <= after.items()
    items = list(read_items_parquet(out / "items.parquet"))
    assert {i["properties"]["tessera:period"] for i in items} == {"2024", "2025"}
    links = [x for x in json.loads((out / "collection.json").read_text())["links"] if x["rel"] == "item"]
    assert len(links) == len(items) == len(sparse.earth.tiles) + 1


@pytest.mark.slow
def test_a_second_region_adds_to_the_first_one(sparse, tmp_path):
    """West half, then east half: at the end the tile holds both, with the pixels of one run over both."""
    west, south, east, north = sparse.earth.bbox
    middle = (west + east) / 2
    tile = "33TUL"
    for part in (f"{west},{south},{middle},{north}", f"{middle},{south},{east},{north}"):
        run(sparse, tmp_path / "out", region=region_from_bbox(part), tiles=(tile,))
    run(sparse, tmp_path / "both", tiles=(tile,))
    window = sparse.earth.island(tile)
    mine, theirs = pixels_of_item(tmp_path / "out", tile, window), pixels_of_item(tmp_path / "both", tile, window)
    assert np.isfinite(mine["scales"]).sum() > 0
    for key in mine:
        assert np.array_equal(mine[key], theirs[key], equal_nan=key == "scales"), key
    again = run(sparse, tmp_path / "out", region=region_from_bbox(f"{west},{south},{middle},{north}"), tiles=(tile,))
    assert again["totals"]["blocks_done"] == 0, "a region that is covered already needs nothing"


def pixels_of_item(out: Path, tile: str, window: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """The pixels that the item points at: replaced revisions may still lie beside them."""
    item = json.loads(next((out / "2024" / tile).glob("*.json")).read_text())
    row, col, height, width = window
    found = {}
    for key in ("embeddings", "scales", "observations", "reasons"):
        with rasterio.open(out / "2024" / tile / item["assets"][key]["href"]) as f:
            found[key] = f.read(window=rasterio.windows.Window(col, row, width, height))
    return found


def break_file(path: Path, how: str) -> None:
    if how == "ends early":
        path.write_bytes(path.read_bytes()[: path.stat().st_size - 400])
    elif how == "is missing":
        path.unlink()
    else:
        with rasterio.open(path) as f:
            profile = f.profile | {"height": f.height - 2, "sparse_ok": True}
        path.unlink()
        with rasterio.open(path, "w", **profile):
            pass


@pytest.mark.parametrize(
    "how",
    ["ends early", *(pytest.param(how, marks=pytest.mark.slow) for how in ("is missing", "has other dimensions"))],
)
def test_a_broken_file_fails_its_tile_and_nothing_else(sparse, tmp_path, how):
    """Failed receipt with scene, band and reason; the command that it gives leads to a finished tile."""
    folder = tmp_path / "planet"
    shutil.copytree(sparse.earth.folder, folder)
    inventory.build([(str(folder), None)], period_of("2024"), ("32TQR", "33TUL"), tmp_path / "all.parquet")
    inv = fewer_dates(tmp_path / "all.parquet", ("32TQR", "33TUL"), tmp_path / "inv.parquet")
    optical = [s for s in read_tile(inv, "32TQR") if s.kept and s.sensor == "S2"]
    scene = max(optical, key=lambda s: sparse.earth.clear("32TQR", s.id).mean())
    asset = scene.asset("B11")
    root = Path(read_header(inv).roots[scene.source])
    break_file(root / asset.href, how)

    out = tmp_path / "out"
    summary = run(sparse, out, inv=str(inv))
    assert incomplete(summary)
    assert summary["totals"]["tiles_published"] == 1
    failed = {(f["tile"], f["scene"], f["band"]) for f in summary["failures"]}
    assert failed == {("32TQR", scene.id, "B11")}
    assert all(f"amend INV --drop {scene.id}:B11" in f["command"] for f in summary["failures"])
    states = {t["tile"]: t["state"] for t in status(str(out))["tiles"]}
    assert states == {"32TQR": "failed", "33TUL": "published"}

    inv2 = tmp_path / "inv2.parquet"
    inventory.amend(inv, [(scene.id, "B11")], how, inv2)
    summary = run(sparse, out, inv=str(inv2))
    assert not incomplete(summary), summary["failures"]
    assert {t["state"] for t in status(str(out))["tiles"]} == {"published"}


def test_after_failures_only_what_is_missing_is_done(sparse, done, tmp_path, monkeypatch):
    from transforms import embed as step

    real = step.embed_window

    def failing(worker, tile, block, wanted, budget, beat):
        if tile.name == "33TUL":
            raise RuntimeError("a block that no retry helps")
        return real(worker, tile, block, wanted, budget, beat)

    out = tmp_path / "out"
    monkeypatch.setattr(step, "embed_window", failing)
    two = ("32TQQ", "33TUL")
    first = run(sparse, out, tiles=two)
    assert incomplete(first)
    assert {f["tile"] for f in first["failures"]} == {"33TUL"}
    monkeypatch.setattr(step, "embed_window", real)
    second = run(sparse, out, tiles=two)
    assert not incomplete(second)
    assert second["totals"]["blocks_done"] == first["totals"]["blocks_failed"]
    for tile in two:
        assert of_tile(out, tile) == of_tile(done, tile)


def test_a_run_stops_beginning_blocks_after_too_many_failures(sparse, tmp_path, monkeypatch):
    def failing(*_):
        raise RuntimeError("always")

    monkeypatch.setattr("transforms.embed.embed_window", failing)
    summary = run(sparse, tmp_path / "out", max_failures=1)
    assert summary["totals"]["blocks_failed"] == 1 < summary["totals"]["blocks"]


def test_a_block_that_killed_its_worker_twice_is_failed_without_a_third_attempt(sparse, done, tmp_path, monkeypatch):
    from transforms import embed as step

    out = tmp_path / "out"
    real = step.embed_window

    class Killed(BaseException):
        """Ends the run as a dead process would: nothing after it in the block is run."""

    def dying(worker, tile, block, wanted, budget, beat):
        raise Killed

    monkeypatch.setattr(step, "embed_window", dying)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Killed"):  # as Beam words it
            run(sparse, out, tiles=("32TQQ",))
    summary = run(sparse, out, tiles=("32TQQ",), max_failures=1)
    assert [f["reason"].startswith("this block ended its worker twice") for f in summary["failures"]] == [True]
    monkeypatch.setattr(step, "embed_window", real)
    summary = run(sparse, out, tiles=("32TQQ",))
    assert not incomplete(summary)
    assert of_tile(out, "32TQQ") == of_tile(done, "32TQQ")


def test_a_tile_is_published_while_another_is_still_being_read(sparse, tmp_path, monkeypatch):
    from transforms import embed as step

    out = tmp_path / "out"
    seen: list[tuple[str, set[str]]] = []
    real = step.embed_window

    def watching(worker, tile, block, wanted, budget, beat):
        seen.append((tile.name, {p.parent.name for p in out.glob("2024/*/*.json")}))
        return real(worker, tile, block, wanted, budget, beat)

    monkeypatch.setattr(step, "embed_window", watching)
    run(sparse, out, tiles=("32TQQ", "33TUL"))
    last_tile, published = seen[-1]
    assert published and last_tile not in published
    assert not list(out.glob("_work/*/*/*")), "no fragment outlives the tiles"


def test_a_folder_of_another_product_is_refused(sparse, done, tmp_path):
    from pipeline.demo.untrained import write

    other = tmp_path / "other.onnx"
    write(other, seed=2)
    with pytest.raises(BadInput, match=r"holds another product \(model: there .* choose another --out"):
        embed(sparse.inv, str(other), str(done), EmbedOptions(), "embed", lambda _: None, False)


def test_a_source_that_the_weights_were_not_made_for_is_refused_with_both_names(sparse, tmp_path, monkeypatch):
    import dataclasses

    from model.modelfile import open_model

    model = open_model(sparse.model)
    narrow = dataclasses.replace(model, profile=dataclasses.replace(model.profile, s2_sources=("sentinel-2-l2a@mars",)))
    monkeypatch.setattr("pipeline.planning.open_model", lambda _: narrow)
    with pytest.raises(BadInput, match=r"sentinel-2-c1-l2a@earth-search.*sentinel-2-l2a@mars"):
        run(sparse, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "refused before anything is written"


def test_an_inventory_without_radar_is_refused(sparse, tmp_path):
    head = read_header(sparse.inv)
    tiles = {t: [s for s in read_tile(sparse.inv, t) if s.sensor == "S2"] for t in head.tiles}
    inv = tmp_path / "s2.parquet"
    write_inventory(inv, head.period, head.frozen, tiles, [s for s in head.sources if "sentinel-2" in s.name])
    with pytest.raises(BadInput, match=r"no radar source.*second --catalog"):
        run(sparse, tmp_path / "out", inv=str(inv))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tiles": ("33TWL",)}, "33TWL is not in"),
        ({"block_px": 1000}, r"1000 px.*multiple of 256"),
        ({"device": "cuda"}, "offers"),
        ({"device": "tpu"}, "auto, cpu or cuda"),
        ({"engine": Local(0)}, "1 or more"),
        ({"memory_gib": 0.1}, r"needs .* GiB a worker.*--block"),
        ({"region": region_from_bbox("0,0,1,1")}, "touches none"),
    ],
)
def test_bad_options_are_refused_before_work(sparse, tmp_path, options, words):
    with pytest.raises(BadInput, match=words):
        run(sparse, tmp_path / "out", **options)
    assert not list((tmp_path / "out").glob("_runs/*"))


def test_a_dry_run_counts_and_writes_no_tile(sparse, tmp_path):
    options = EmbedOptions(region=region_from_bbox(sparse.bbox), block_px=512)
    found = dry_run(sparse.inv, sparse.model, str(tmp_path / "out"), options)
    assert found["tiles_to_do"] == len(sparse.earth.tiles)
    assert found["blocks"] >= len(sparse.earth.tiles)
    assert not list((tmp_path / "out").glob("2024"))


def test_a_region_without_a_pixel_centre_is_refused(sparse, tmp_path):
    west, south, _, _ = sparse.earth.bbox
    speck = f"{west + 1e-3},{south + 1e-3},{west + 1e-3 + 1e-6},{south + 1e-3 + 1e-6}"
    with pytest.raises(BadInput, match="centre of no 10 m pixel"):
        run(sparse, tmp_path / "out", region=region_from_bbox(speck))


def test_a_dry_run_does_not_claim_the_folder(sparse, tmp_path):
    dry_run(sparse.inv, sparse.model, str(tmp_path / "out"), EmbedOptions(region=region_from_bbox(sparse.bbox)))
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.slow
def test_verify_sees_pixels_that_are_missing(sparse, tmp_path, monkeypatch):
    from transforms import embed as step

    class Lossy(step.WindowEncoder):
        def add(self, pixels, wanted, row=0, col=0):
            some = wanted.copy()
            some[::2] = False
            super().add(pixels, some, row, col)

    out = tmp_path / "out"
    monkeypatch.setattr(step, "WindowEncoder", Lossy)
    run(sparse, out, tiles=("33TUL",))
    found = verify(str(out), recompute=2, seed=0, device="cpu")
    assert any(f["check"] == "recompute" and "other pixels" in f["detail"] for f in found["findings"]), found


def test_verify_of_a_source_that_is_gone_is_a_finding(sparse, done, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    folder = tmp_path / "planet"
    shutil.copytree(sparse.earth.folder, folder)
    inv = tmp_path / "inv.parquet"
    inventory.build([(str(folder), None)], period_of("2024"), sparse.earth.tiles, inv)
    shutil.copy(inv, next(out.glob("_inputs/*.parquet")))
    shutil.rmtree(folder)
    found = verify(str(out), recompute=1, seed=0, device="cpu")
    assert any("a source cannot be read" in f["detail"] for f in found["findings"])
