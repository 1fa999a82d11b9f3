"""The disk store where another run removes the folder that it writes to."""

import shutil

import pytest

from transforms import disk_store
from transforms.disk_store import LocalStore
from transforms.storage import StoreError


def test_a_folder_that_is_cleared_away_while_a_file_is_written_is_made_again(tmp_path):
    store = LocalStore(str(tmp_path))
    with store.writer("_work/tile/a.frag") as f:
        f.write(b"made")
        shutil.rmtree(tmp_path / "_work")
    assert store.get("_work/tile/a.frag") == b"made"


def test_a_folder_that_goes_in_the_moment_of_the_name_is_made_again(tmp_path, monkeypatch):
    store, settle, gone = LocalStore(str(tmp_path)), disk_store._settle, []

    def settled(f):
        settle(f)
        if not gone:
            gone.append(shutil.rmtree(tmp_path / "_work"))

    monkeypatch.setattr(disk_store, "_settle", settled)
    assert store.put_if_absent("_work/tile/a.json", b"first")
    assert not store.put_if_absent("_work/tile/a.json", b"second")
    assert store.get("_work/tile/a.json") == b"first" and gone


def test_a_folder_that_goes_for_ever_ends_with_words(tmp_path, monkeypatch):
    def act(temporary, path):
        raise FileNotFoundError

    (tmp_path / "t").write_bytes(b"")
    with pytest.raises(StoreError, match="is removed by another run again and again"):
        disk_store._into_place(act, tmp_path / "t", tmp_path / "folder" / "x")
    with pytest.raises(FileNotFoundError):
        disk_store._into_place(act, tmp_path / "gone", tmp_path / "folder" / "x")
