"""Who reads while tiles are made: finished tiles of a run that stopped, and tiles that are replaced under a reader."""

import json
import threading
from pathlib import Path

import google_crc32c
import pytest
from conftest import contents

from pipeline.embed import embed, incomplete
from pipeline.inventory import amend
from pipeline.planning import EmbedOptions
from transforms import embed as steps_of_a_block
from transforms import steps
from transforms.inventory import read_tile
from transforms.plans import Plan
from transforms.publish import published_revision
from transforms.regions import region_from_bbox
from transforms.scenes import S2
from transforms.storage import open_store


def run(world, out, inv=None, **options):
    chosen = {"region": region_from_bbox(world.bbox), "block_px": 512} | options
    return embed(inv or world.inv, world.model, str(out), EmbedOptions(**chosen), "embed", lambda _: None, False)


@pytest.mark.slow
def test_a_run_that_stops_at_half_has_published_the_finished_tiles_and_their_fragments_are_gone(
    sparse, tmp_path, monkeypatch
):
    tiles = sparse.earth.tiles[:2]
    out = tmp_path / "out"
    embed_block = steps_of_a_block.embed_block

    def until_one_is_published(worker, task):
        plan: Plan = worker.plan
        if any(published_revision(worker.store, t, plan.period, plan.model_name) for t in tiles):
            worker.store.put_if_absent(steps_of_a_block.stop_name(plan.run), b"enough for today")
        return embed_block(worker, task)

    monkeypatch.setattr(steps, "embed_block", until_one_is_published)
    summary = run(sparse, out, tiles=tiles)
    assert summary["stopped"] == "enough for today"
    assert summary["totals"]["tiles_published"] == 1 and incomplete(summary)
    (left,) = summary["unfinished"]
    (finished,) = set(tiles) - {left}
    assert not list(out.glob(f"_work/2024/{finished}/**/*.*"))
    assert (out / "items.parquet").exists() and list(out.glob(f"2024/{finished}/*.json"))
    assert not list(out.glob(f"2024/{left}/*.json"))
    monkeypatch.undo()
    assert not incomplete(run(sparse, out, tiles=tiles))
    undisturbed = tmp_path / "undisturbed"
    run(sparse, undisturbed, tiles=tiles)
    assert contents(out) == contents(undisturbed)


def whole(folder: Path, item: dict) -> bool:
    """Whether every asset has the bytes that the item says."""
    return all(
        google_crc32c.Checksum((folder / a["href"]).read_bytes()).hexdigest().decode() == a["tessera:crc32c"]
        for a in item["assets"].values()
    )


@pytest.mark.slow
def test_a_reader_never_sees_a_mixture_or_an_error_while_a_tile_is_replaced(sparse, tmp_path):
    tile, out = sparse.earth.tiles[0], tmp_path / "out"
    run(sparse, out, tiles=(tile,))
    (path,) = out.glob(f"2024/{tile}/*.json")
    first = json.loads(path.read_text())
    scene = next(s.id for s in read_tile(sparse.inv, tile) if s.kept and s.sensor == S2)
    other = tmp_path / "other.parquet"
    amend(sparse.inv, [(scene, None)], "a test", str(other))
    over, seen, faults = threading.Event(), set[str](), list[str]()

    def read():
        while not over.is_set():
            try:
                item = json.loads(path.read_bytes())
                seen.add(item["assets"]["embeddings"]["href"])
                if not whole(path.parent, item):
                    faults.append(item["assets"]["embeddings"]["href"])
            except Exception as e:
                faults.append(repr(e))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for options in ({"force": True}, {"inv": str(other)}, {"force": True}, {"force": True, "inv": str(other)}):
            assert not incomplete(run(sparse, out, tiles=(tile,), **options))
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert not faults
    assert len(seen) > 1, "the reader was never overtaken: this test has shown nothing"
    assert whole(path.parent, first), "who opened the first item can still read it"
    last = json.loads(path.read_text())
    assert last["properties"]["tessera:revision"] != first["properties"]["tessera:revision"]
    assert published_revision(open_store(str(out)), tile, "2024", first["properties"]["tessera:model"])
