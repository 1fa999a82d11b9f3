"""An output folder in a bucket: what is published there, asked of it and shown of it is what a disk would have."""

import collections
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from conftest import contents
from store_places import PLACES, servers_ended

from pipeline import finish, status
from pipeline.clean import clean
from pipeline.embed import embed, incomplete
from pipeline.planning import EmbedOptions
from pipeline.report import report
from pipeline.verify import verify
from transforms.disk_store import LocalStore
from transforms.regions import region_from_bbox
from transforms.storage import Store

TILES = 2


def run(world, out, **options):
    chosen = {"region": region_from_bbox(world.bbox), "block_px": 512, "tiles": world.earth.tiles[:TILES]} | options
    return embed(world.inv, world.model, out, EmbedOptions(**chosen), "embed", lambda _: None, False)


@pytest.fixture(scope="module", autouse=True)
def ended():
    with servers_ended():
        yield


@pytest.fixture(scope="module")
def on_disk(sparse, tmp_path_factory):
    out = tmp_path_factory.mktemp("disk") / "out"
    assert not incomplete(run(sparse, str(out)))
    return out


def objects(store: Store) -> dict[str, str]:
    """As `contents`, of any store."""
    return {
        e.name: hashlib.sha256(store.get(e.name)).hexdigest()
        for e in store.walk("")
        if e.name.split("/")[0] not in ("_runs", "_work")
    }


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_bucket_holds_what_a_disk_would(sparse, on_disk, place):
    with PLACES[place]() as store:
        summary = run(sparse, store.url)
        assert not incomplete(summary), summary["failures"]
        assert objects(store) == contents(on_disk)
        assert not list(store.walk("_work"))
        known, there = status.status(str(on_disk)), status.status(store.url)
        assert there == known | {"out": store.url}
        assert verify(store.url, 1, 0, "cpu")["ok"]
        page = store.get(report(store.url).removeprefix(f"{store.url}/")).decode()
        for tile in sparse.earth.tiles[:TILES]:
            assert tile in page
        assert page.count("data:image/png") == Path(report(on_disk)).read_text().count("data:image/png") > 0
        again = run(sparse, store.url)
        assert not incomplete(again)
        assert again["totals"]["blocks_done"] == 0
        before = objects(store)
        assert clean(store.url, 0)["objects"] == 0
        assert objects(store) == before


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_overviews_in_a_bucket_are_those_of_a_disk(sparse, tmp_path, place):
    one = {"tiles": sparse.earth.tiles[:1], "overviews": True}
    assert not incomplete(run(sparse, str(tmp_path / "out"), **one))
    with PLACES[place]() as store:
        assert not incomplete(run(sparse, store.url, **one))
        assert objects(store) == contents(tmp_path / "out")


class Counting:
    """A store that counts what is asked of it, by verb and object."""

    def __init__(self, store):
        self._store, self.asked = store, list[tuple[str, str]]()

    def __getattr__(self, verb):
        found = getattr(self._store, verb)
        if not callable(found):
            return found

        def counted(name="", *more, **options):
            self.asked.append((verb, name))
            return found(name, *more, **options)

        return counted


def test_status_asks_little_and_opens_the_receipts_of_unfinished_tiles_alone(sparse, on_disk, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(on_disk, out)
    item = next(Path(out / "2024" / sparse.earth.tiles[0]).glob("*.json"))
    many = 40
    for n in range(many):  # published tiles like the first one
        record = json.loads(item.read_text())
        record["properties"]["tessera:tile"] = name = f"33T{'ABCDEFGHJKLMNPQRSTUV'[n // 20 * 7 + n % 7]}{n:02d}"
        (out / "2024" / name).mkdir()
        (out / "2024" / name / item.name.replace(sparse.earth.tiles[0], name)).write_text(json.dumps(record))
    desk = out / "_work/2024" / sparse.earth.tiles[2] / "12345678" / "desk"
    desk.mkdir(parents=True)
    counting = Counting(LocalStore(str(out)))
    monkeypatch.setattr(status, "open_store", lambda _: counting)
    waiting = collections.Counter()
    monkeypatch.setattr(
        status, "wanted_tiles", lambda _: {"2024": {e.name for e in (out / "2024").iterdir()} | {sparse.earth.tiles[2]}}
    )
    found = status.status(str(out))
    assert found["states"] == {"published": many + TILES, "missing": 1}
    for _, name in counting.asked:
        parts = name.split("/")
        waiting[parts[1] if len(parts) > 1 else name] += 1
    assert max(n for tile, n in waiting.items() if tile.startswith("33T")) <= 3
    assert len(counting.asked) <= 3 * (many + TILES + 1)
    assert not [name for verb, name in counting.asked if name.startswith("_work/") and verb == "get"]
    assert list(finish.published(counting, json.loads(item.read_text())["properties"]["tessera:model"]))
