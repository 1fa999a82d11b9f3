import datetime as dt
import itertools
import json
from pathlib import Path

import pytest
from stac_items import SHARED, TILE, optical, radar

from model.errors import BadInput
from transforms import grid
from transforms.catalogs.api import months_of
from transforms.catalogs.hrefs import resolve
from transforms.catalogs.items import record_of
from transforms.catalogs.search import items_of, open_catalog
from transforms.periods import period_of

MPC = SHARED / "golden/scenes_mpc"
golden = pytest.mark.skipif(not MPC.is_dir(), reason="no ../shared/golden")


# --- catalogues on disk


def write(folder, *items, name="item"):
    folder.mkdir(parents=True, exist_ok=True)
    for n, item in enumerate(items):
        (folder / f"{name}{n}.json").write_text(json.dumps(item))
    return folder


def found(catalog, period="2024", tiles=("33TWL",)):
    return sorted(f.item["id"] for _, f in items_of(catalog, [grid.tile_of(t) for t in tiles], period_of(period)))


ITEMS = [
    optical(id="here"),
    optical(id="elsewhere", tile="33TWM"),
    optical(id="before", datetime="2023-12-31T23:59:59.999Z"),
    optical(id="first", datetime="2024-01-01T00:00:00Z"),
    optical(id="last", datetime="2024-12-31T23:59:59.999Z"),
    optical(id="after", datetime="2025-01-01T00:00:00Z"),
    radar(id="near"),
    radar(id="far", left_m=200_000, top_m=6_000_000),
]
EXPECTED = ["first", "here", "last", "near"]


def test_a_folder_of_items_is_searched_with_everything_that_is_no_item_left_alone(tmp_path):
    write(tmp_path / "deep/er", *ITEMS[:4])
    write(tmp_path, *ITEMS[4:])
    (tmp_path / "roi.json").write_text('{"period": [1]}')
    (tmp_path / "number.json").write_text("3")
    catalog = open_catalog(str(tmp_path))
    assert found(catalog) == EXPECTED and catalog.span() == "2023-12-31..2025-01-01"


@pytest.mark.parametrize("wrap", [lambda items: items, lambda items: {"type": "FeatureCollection", "features": items}])
def test_a_file_of_many_items_is_a_catalogue(tmp_path, wrap):
    (tmp_path / "all.json").write_text(json.dumps(wrap(ITEMS)))
    assert found(open_catalog(str(tmp_path / "all.json"))) == EXPECTED
    assert found(open_catalog(str(tmp_path))) == EXPECTED


def test_a_list_of_item_paths_is_a_catalogue(tmp_path):
    write(tmp_path / "items", *ITEMS)
    paths = [f"items/item{n}.json" for n in range(len(ITEMS))]
    (tmp_path / "list.json").write_text(json.dumps({"sentinel-2-l2a": paths[:6], "sentinel-1-rtc": paths[6:]}))
    catalog = open_catalog(str(tmp_path / "list.json"))
    assert found(catalog) == EXPECTED and catalog.root == str(tmp_path)


def static(folder):
    """A static catalogue with a collection in between, links both ways, and one item that nobody links to."""
    write(folder / "s2/items", *ITEMS)
    (folder / "s2/items/item0.json").rename(folder / "s2/items/unlinked.json")
    links = [{"rel": "item", "href": f"./items/item{n}.json"} for n in range(1, len(ITEMS))]
    up = [{"rel": "parent", "href": "../catalog.json"}, {"rel": "child", "href": "../catalog.json"}]
    (folder / "s2/collection.json").write_text(json.dumps({"type": "Collection", "id": "c", "links": [*links, *up]}))
    links = [{"rel": "child", "href": "./s2/collection.json"}, {"rel": "self", "href": "https://h/catalog.json"}]
    (folder / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "r", "links": links}))
    return folder


def test_a_static_catalogue_is_what_its_links_reach_and_may_link_in_circles(tmp_path):
    static(tmp_path)
    assert found(open_catalog(str(tmp_path))) == ["first", "last", "near"]


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ({"rel": "item", "href": "./gone.json"}, "which is missing"),
        ({"rel": "child", "href": "../other/catalog.json"}, "leads out of the catalogue"),
        ({"rel": "item", "href": "https://h/item.json"}, "read from disk"),
    ],
)
def test_links_that_a_static_catalogue_cannot_have_are_refused(tmp_path, link, words):
    (tmp_path / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "r", "links": [link]}))
    with pytest.raises(BadInput, match=words):
        open_catalog(str(tmp_path))


def test_items_of_no_known_collection_are_counted_and_passed_over(tmp_path):
    write(tmp_path, *ITEMS, {**optical(), "collection": "landsat-c2-l2"})
    catalog = open_catalog(str(tmp_path))
    assert found(catalog) == EXPECTED and catalog.ignored == {"collection landsat-c2-l2": 1}
    catalog = open_catalog(str(tmp_path), "planetary-computer")
    assert found(catalog) == EXPECTED and catalog.ignored == {"collection landsat-c2-l2 of planetary-computer": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("erth-search", "no such folder, file or provider.*earth-search"),
        ("some/where", "some/where: no such folder or file"),
        ("items.json", "items.json: no such folder or file"),
    ],
)
def test_a_catalogue_that_is_not_there_is_refused_by_name(text, words):
    with pytest.raises(BadInput, match=words):
        open_catalog(text)


def test_a_provider_that_is_not_known_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(BadInput, match="--as google: this release knows earth-search, planetary-computer"):
        open_catalog(str(tmp_path), "google")
    with pytest.raises(BadInput, match="follows its own description"):
        open_catalog("earth-search", "planetary-computer")


def test_a_cut_item_is_refused_by_path_and_not_passed_over(tmp_path):
    write(tmp_path, optical())
    whole = (tmp_path / "item0.json").read_text()
    (tmp_path / "item0.json").write_text(whole[:-10])
    with pytest.raises(BadInput, match=r"item0\.json is not JSON"):
        open_catalog(str(tmp_path))


@pytest.mark.parametrize("text", ["3", "{}", '{"type": "Feature"}', '{"a": 1}'])
def test_a_file_that_is_no_catalogue_is_refused(tmp_path, text):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(BadInput, match="neither a STAC catalogue, nor items, nor a list"):
        open_catalog(str(tmp_path / "f.json"))


@golden
@pytest.mark.parametrize("where", ["", "items", "catalogue.json"])
def test_the_golden_scenes_are_found_as_folder_and_as_list(where):
    catalog = open_catalog(str(MPC / where))
    ids = found(catalog, "2021-02-01/2022-01-31")
    listed = json.loads((MPC / "catalogue.json").read_text())
    assert ids == sorted(Path(p).stem for paths in listed.values() for p in paths)
    records = [record_of(f, TILE, catalog.root) for f in catalog.items(TILE, period_of("2021-02-01/2022-01-31"))]
    for asset in (a for r in records for a in r.scene.assets):
        assert Path(resolve(catalog.root, asset.href)).is_file()


# --- months


@pytest.mark.parametrize("period", ["2024", "2023-07-15/2024-07-14", "2024-02-29/2025-02-28", "2023-12-31/2024-12-30"])
def test_months_cover_the_period_without_a_gap(period):
    period = period_of(period)
    months = months_of(period)
    assert months[0][0] == f"{period.start}T00:00:00Z"
    assert months[-1][1] == f"{period.end + dt.timedelta(days=1)}T00:00:00Z"
    assert all(a[1] == b[0] and a[0] < a[1] for a, b in itertools.pairwise(months))
    assert len({a[:7] for a, _ in months}) == len(months)
