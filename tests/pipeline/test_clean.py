"""The clean verb: what it removes, and what it never touches."""

import json
import os
from pathlib import Path

import pytest

from model.errors import BadInput
from pipeline import words
from pipeline.clean import age_from_text, clean
from transforms.disk_store import LocalStore

MODEL = "m"
NOW = 2_000_000_000.0
DAY = 86_400.0


class Out:
    """An output folder made by hand, every object with an age."""

    def __init__(self, root):
        self.store = LocalStore(str(root))
        self.put("_inputs/product.json", 100, json.dumps({"model": MODEL}).encode())

    def put(self, name, days, data=b"12345"):
        self.store.replace(name, data)
        os.utime(self.store.path(name), (NOW - days * DAY,) * 2)

    def item(self, tile, folder, days, revision=None):
        assets = {k: {"href": f"./{folder}/{k}.tif"} for k in ("embeddings", "scales")}
        record = {"assets": assets, "properties": {"tessera:revision": revision or folder + "0" * 56}}
        self.put(f"2024/{tile}/{tile}_2024_{MODEL}.json", days, json.dumps(record).encode())

    def files(self):
        return {e.name for e in self.store.walk("")}

    def clean(self, days=7, **more):
        return clean(self.store.root, days * DAY, now=NOW, **more)


@pytest.fixture
def out(tmp_path):
    return Out(tmp_path / "out")


def test_a_replaced_revision_goes_and_the_one_that_the_item_names_stays(out):
    out.put("2024/33TUL/aaaaaaaa/embeddings.tif", 30)
    out.put("2024/33TUL/aaaaaaaa/scales.tif", 30)
    out.put("2024/33TUL/bbbbbbbb/embeddings.tif", 20)
    out.item("33TUL", "bbbbbbbb", 20)
    before = out.files()
    done = out.clean()
    assert before - out.files() == {"2024/33TUL/aaaaaaaa/embeddings.tif", "2024/33TUL/aaaaaaaa/scales.tif"}
    assert (done["objects"], done["bytes"]) == (2, 10)
    assert done["folders"] == [{"folder": "2024/33TUL/aaaaaaaa", "bytes": 10, "why": "replaced by another revision"}]
    assert "removed 2 objects" in words.cleaned(done)
    assert out.clean()["objects"] == 0


def test_a_revision_made_once_more_lies_beside_itself_and_only_the_named_one_stays(out):
    out.put("2024/33TUL/aaaaaaaa/embeddings.tif", 30)
    out.put("2024/33TUL/aaaaaaaa.1/embeddings.tif", 20)
    out.item("33TUL", "aaaaaaaa.1", 20, "aaaaaaaa" + "0" * 56)
    out.clean()
    assert "2024/33TUL/aaaaaaaa.1/embeddings.tif" in out.files()
    assert "2024/33TUL/aaaaaaaa/embeddings.tif" not in out.files()


def test_what_was_replaced_lately_stays_for_those_who_read_it(out):
    out.put("2024/33TUL/aaaaaaaa/embeddings.tif", 300)
    out.put("2024/33TUL/bbbbbbbb/embeddings.tif", 6)
    out.item("33TUL", "bbbbbbbb", 6)  # the switch was six days ago
    before = out.files()
    done = out.clean()
    assert out.files() == before
    assert done["kept_young"] == 1
    assert "1 folders are not old enough" in words.cleaned(done)


def test_a_dry_run_says_the_same_and_removes_nothing(out):
    out.put("2024/33TUL/aaaaaaaa/embeddings.tif", 30)
    out.put("2024/33TUL/bbbbbbbb/embeddings.tif", 20)
    out.item("33TUL", "bbbbbbbb", 20)
    before = out.files()
    said = out.clean(dry_run=True)
    assert out.files() == before
    done = out.clean()
    assert said["folders"] == done["folders"]
    assert len(out.files()) == len(before) - 1


def test_assets_of_a_publisher_that_died_go_and_those_of_one_at_work_stay(out):
    out.put("2024/33TUL/aaaaaaaa/embeddings.tif", 30)
    out.put("2024/33TUM/aaaaaaaa/embeddings.tif", 30)
    out.put("2024/33TUM/aaaaaaaa/scales.tif", 0.1)  # written just now: the newest object counts for the whole folder
    out.clean()
    assert out.files() - {"_inputs/product.json"} == {
        "2024/33TUM/aaaaaaaa/embeddings.tif", "2024/33TUM/aaaaaaaa/scales.tif",
    }  # fmt: skip


def test_unfinished_work_stays_however_old_unless_another_revision_took_its_place(out):
    out.put("_work/2024/33TUK/cccccccc/11111111/r00000_c00000.done.json", 400)
    out.put("2024/33TUL/bbbbbbbb/embeddings.tif", 20)
    out.item("33TUL", "bbbbbbbb", 20)
    out.put("_work/2024/33TUL/bbbbbbbb/11111111/r00000_c00000.embeddings.12345678.frag", 21)
    out.put("_work/2024/33TUL/dddddddd/11111111/r00000_c00000.done.json", 25)  # older than the switch
    out.put("_work/2024/33TUL/eeeeeeee/11111111/r00000_c00000.done.json", 10)  # begun after it
    out.clean()
    assert {n for n in out.files() if n.startswith("_work")} == {
        "_work/2024/33TUK/cccccccc/11111111/r00000_c00000.done.json",
        "_work/2024/33TUL/eeeeeeee/11111111/r00000_c00000.done.json",
    }


def test_an_item_that_cannot_be_read_stops_everything(out):
    out.put("2024/33TUL/aaaaaaaa/embeddings.tif", 30)
    out.put("2024/33TUL/bbbbbbbb/embeddings.tif", 30)
    out.put(f"2024/33TUL/33TUL_2024_{MODEL}.json", 20, b"{")
    before = out.files()
    with pytest.raises(BadInput, match=r"33TUL_2024_m\.json is no item"):
        out.clean()
    assert out.files() == before


def test_items_are_opened_only_where_something_may_be_replaced(out, monkeypatch):
    for tile in ("33TUK", "33TUL", "33TUM"):
        out.put(f"2024/{tile}/aaaaaaaa/embeddings.tif", 30)
        out.item(tile, "aaaaaaaa", 30)
    out.put("2024/33TUM/bbbbbbbb/embeddings.tif", 30)
    opened = []
    get = LocalStore.get
    monkeypatch.setattr(LocalStore, "get", lambda self, name, *a: opened.append(name) or get(self, name, *a))
    out.clean()
    assert opened == ["_inputs/product.json", f"2024/33TUM/33TUM_2024_{MODEL}.json"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("7d", 604_800), ("12h", 43_200), ("1.5h", 5400), ("30m", 1800), ("0s", 0)]
)
def test_ages(text, seconds):
    assert age_from_text(text) == seconds


@pytest.mark.parametrize("text", ["7", "d", "-1d", "7 days", "7w", ""])
def test_ages_that_are_none(text):
    with pytest.raises(BadInput, match="for example 7d"):
        age_from_text(text)


def test_another_folder_is_refused(tmp_path):
    Path(tmp_path / "x").mkdir()
    with pytest.raises(BadInput, match="not an output folder"):
        clean(str(tmp_path / "x"), 0)
