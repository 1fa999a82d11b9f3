import errno
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from transforms.disk_store import DAY_S, PARTS, LocalStore
from transforms.storage import Source, open_store


@pytest.fixture
def store(tmp_path):
    return LocalStore(str(tmp_path / "out"))


def files(store):
    """All files under the root, temporary ones too."""
    return sorted(str(p.relative_to(store.root)) for p in Path(store.root).rglob("*") if p.is_file())


def test_no_write_leaves_a_file_that_is_no_object(store):
    store.replace("x/old", b"old")
    assert store.put_if_absent("x/a", b"1")
    assert not store.put_if_absent("x/a", b"2")
    assert not store.replace_if("x/a", b"3", "0-0-0")
    with pytest.raises(KeyboardInterrupt), store.writer("x/old") as f:
        f.write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError):
        store.join("x/b", b"head", [Source("x/none", 1)], "x/scratch")
    store.join("x/c", b"head", [Source("x/a", 1)], "x/scratch")
    assert files(store) == ["x/a", "x/c", "x/old"]


def test_the_folder_of_what_is_being_written_is_in_no_listing(store):
    with store.writer("x/a") as f:
        f.write(b"1")
        assert [len(files(store)), store.folders(""), store.names(""), list(store.walk(""))] == [1, [], [], []]


def test_deleting_a_folder_leaves_no_empty_folders(store):
    for name in ("a/1", "a/b/2", "ab/3"):
        store.replace(name, b"")
    store.delete_all("a")
    assert [p.name for p in Path(store.root).iterdir() if p.name != PARTS] == ["ab"]


def test_a_name_that_leads_out_makes_no_folder(store):
    for name in ("../x", "/etc/x", "a/.."):
        with pytest.raises(BadInput, match="leads out of"):
            store.replace(name, b"")
    assert not Path(store.root).parent.joinpath("x").exists()
    assert not Path(store.root).exists()


@given(st.lists(st.sampled_from(["..", ".", "a", "...", "b..", "/", ""]), max_size=5).map("/".join))
def test_a_name_is_refused_or_lies_under_the_root(name):
    store = LocalStore("root")
    try:
        path = store.path(name)
    except BadInput:
        return
    assert Path(os.path.normpath(path)).parts[0] == "root"


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "fchmod"])
def test_a_full_disk_leaves_nothing_behind_and_the_old_object_whole(store, monkeypatch, call):
    store.replace("x/old", b"old")
    monkeypatch.setattr(os, call, full)
    for write in (store.replace, store.put_if_absent):
        for name in ("x/old", "x/new"):
            with pytest.raises(OSError, match="No space left") as error:
                write(name, b"123")
            assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert files(store) == ["x/old"]
    assert store.get("x/old") == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_fills_up_while_bytes_are_written_leaves_nothing_behind(store, monkeypatch):
    store.replace("x/old", b"old")
    mkstemp = tempfile.mkstemp

    def onto_a_full_disk(**where):
        handle, path = mkstemp(**where)
        os.close(handle)
        return os.open("/dev/full", os.O_WRONLY), path

    monkeypatch.setattr(tempfile, "mkstemp", onto_a_full_disk)
    for write in (store.replace, store.put_if_absent):
        with pytest.raises(OSError, match="No space left"):
            write("x/new", bytes(1 << 20))
    assert files(store) == ["x/old"]


@pytest.fixture
def read_only():
    """A folder with one object, in which this process may not write; the superuser becomes nobody for the test."""
    root = Path(tempfile.mkdtemp())  # not tmp_path: nobody may not look into that of another user
    store = LocalStore(str(root))
    store.replace("x/a", b"1")
    folders = [root, root / "x", root / PARTS]
    for folder in folders:
        folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield store
    os.seteuid(user)
    for folder in folders:
        folder.chmod(0o755)
    store.delete_all("")


def test_a_read_only_folder_is_read_and_every_write_is_an_error(read_only):
    assert read_only.get("x/a") == b"1"
    assert read_only.names("x") == ["x/a"]
    for write in (
        lambda: read_only.put_if_absent("x/b", b""),
        lambda: read_only.replace("x/a", b"2"),
        lambda: read_only.put_if_absent("y/b", b""),
        lambda: read_only.delete("x/a"),
    ):
        with pytest.raises(PermissionError):
            write()
    assert read_only.get("x/a") == b"1"
    assert files(read_only) == ["x/a"]


def test_objects_can_be_read_by_others(store):
    store.replace("a", b"")
    store.put_if_absent("b", b"")
    assert [Path(store.root, n).stat().st_mode & 0o777 for n in ("a", "b")] == [0o644, 0o644]


def leftover(store, name, age_s=0.0):
    part = Path(store.root) / PARTS / name
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(b"half")
    when = time.time() - age_s
    os.utime(part, (when, when))
    return part


def gone_pid():
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_a_sweep_removes_what_dead_writers_left_and_nothing_of_those_at_work(store):
    here = socket.gethostname()
    dead = leftover(store, f"{here}-{gone_pid()}-abc")
    alive = leftover(store, f"{here}-{os.getpid()}-abc")
    elsewhere = leftover(store, f"some-other-host-{gone_pid()}-abc")
    long_ago = leftover(store, "some-other-host-2-abc", DAY_S + 60)
    stray = leftover(store, ".DS_Store")
    store.sweep()
    assert [p.exists() for p in (dead, long_ago, alive, elsewhere, stray)] == [False, False, True, True, True]


def test_a_sweep_takes_the_folder_of_temporary_files_away_when_it_is_empty(store):
    store.replace("a", b"")
    store.sweep()
    assert [p.name for p in Path(store.root).iterdir()] == ["a"]
    store.sweep()


def test_a_sweep_at_the_worst_moment_is_survived(store, monkeypatch):
    # Between the making of the folder of temporary files and that of the first file in it.
    mkstemp, swept = tempfile.mkstemp, []

    def after_a_sweep(**where):
        if not swept:
            store.sweep()
            swept.append(True)
        return mkstemp(**where)

    monkeypatch.setattr(tempfile, "mkstemp", after_a_sweep)
    store.replace("a", b"1")
    assert swept
    assert store.get("a") == b"1"


def test_writers_and_sweeps_do_not_disturb_each_other(store):
    with ThreadPoolExecutor(3) as pool:
        sweeps = pool.submit(lambda: [store.sweep() for _ in range(300)])
        writes = [pool.submit(lambda k=k: [store.replace(f"{k}/{n}", b"x") for n in range(60)]) for k in range(2)]
        for task in (sweeps, *writes):
            task.result()
    assert len([f for f in files(store) if not f.startswith(PARTS)]) == 120


def test_a_scheme_that_is_not_written_is_refused_and_a_file_url_is_a_folder(tmp_path):
    assert open_store(f"file://{tmp_path}/x").url == open_store(f"{tmp_path}/x").url == f"{tmp_path}/x"
    for url in ("ftp://host/x", "az://bucket"):
        with pytest.raises(BadInput, match=url.split(":")[0]):
            open_store(url)


def test_a_relative_folder_is_made_absolute_for_workers_that_start_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_store("out").url == str(tmp_path / "out")
