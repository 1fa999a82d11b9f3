import errno
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import BadInput
from transforms.storage import DAY_S, PARTS, LocalStore, open_store


@pytest.fixture
def store(tmp_path):
    return LocalStore(str(tmp_path / "out"))


def files(store):
    """All files under the root, temporary ones too."""
    return sorted(str(p.relative_to(store.root)) for p in Path(store.root).rglob("*") if p.is_file())


def test_what_is_put_is_there_with_its_size_and_any_range_of_it(store):
    assert store.put_if_absent("a/b/c.bin", b"0123456789")
    assert store.get("a/b/c.bin") == b"0123456789"
    assert store.stat("a/b/c.bin").size_bytes == 10
    assert [store.get("a/b/c.bin", 3), store.get("a/b/c.bin", 3, 2), store.get("a/b/c.bin", 9, 5)] == [
        b"3456789", b"34", b"9",
    ]  # fmt: skip


def test_a_second_put_changes_nothing_and_says_so(store):
    assert store.put_if_absent("a", b"first")
    assert not store.put_if_absent("a", b"second")
    assert store.get("a") == b"first"
    assert files(store) == ["a"]


def test_replace_writes_over_and_creates(store):
    store.replace("x/a", b"1")
    store.replace("x/a", b"22")
    assert store.get("x/a") == b"22"
    assert files(store) == ["x/a"]


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_of_sixteen_threads_that_put_one_name_exactly_one_wins_and_its_bytes_are_whole(store, size):
    for n in range(8):
        ready = threading.Barrier(16)

        def put(k, name=f"round{n}/x", ready=ready):
            ready.wait()
            return store.put_if_absent(name, bytes([k]) * size)

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(put, range(16)))
        assert won.count(True) == 1
        assert store.get(f"round{n}/x") == bytes([won.index(True)]) * size
    assert files(store) == [f"round{n}/x" for n in range(8)]


def test_a_writer_that_raises_leaves_nothing_and_what_was_there_stays(store):
    class Stopped(Exception):
        pass

    store.replace("x/old", b"old")
    for name in ("x/old", "x/new"):
        with pytest.raises(Stopped), store.writer(name) as f:
            f.write(b"half")
            raise Stopped
    assert files(store) == ["x/old"]
    assert store.get("x/old") == b"old"
    assert store.stat("x/new") is None


def test_nothing_is_seen_of_an_object_before_its_writer_has_ended(store):
    with store.writer("x/a") as f:
        f.write(b"1" * 100_000)
        f.flush()
        assert store.stat("x/a") is None
        assert store.names("x") == []
        assert store.names("") == []
        assert store.folders("") == ["x"]  # and not the folder of what is being written
    assert store.names("x") == ["x/a"]


def test_a_reader_never_sees_half_a_file_while_another_replaces_it(store):
    contents = [bytes([65 + k]) * (1 + 37_000 * k) for k in range(4)]
    store.replace("a", contents[0])

    def read():
        return {store.get("a") for _ in range(300)}

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for n in itertools.count():
            store.replace("a", contents[n % 4])
            if all(r.done() for r in readers):
                break
    assert set().union(*(r.result() for r in readers)) <= set(contents)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/..", "/etc/x", ".."])
def test_a_name_that_leads_out_of_the_folder_is_refused(store, name):
    for verb in (
        lambda: store.put_if_absent(name, b""),
        lambda: store.replace(name, b""),
        lambda: store.get(name),
        lambda: store.stat(name),
        lambda: store.names(name),
        lambda: store.folders(name),
        lambda: store.delete(name),
        lambda: store.delete_all(name),
    ):
        with pytest.raises(BadInput, match="leads out of"):
            verb()
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


def test_listings_are_sorted_one_level_deep_and_empty_where_nothing_is(store):
    for name in ("b", "a", "d/2", "d/1", "d/e/3", "f/4"):
        store.replace(name, b"")
    assert store.names("") == ["a", "b"]
    assert store.folders("") == ["d", "f"]
    assert store.names("d") == ["d/1", "d/2"]
    assert store.folders("d") == ["d/e"]
    for prefix in ("none", "a", "a/b"):  # "a" is an object
        assert store.names(prefix) == store.folders(prefix) == []


def test_a_folder_is_no_object(store):
    store.replace("d/1", b"")
    assert store.stat("none/1") is None
    assert store.stat("d/1/x") is None
    with pytest.raises(FileNotFoundError):
        store.get("d/2")


def test_deleting_removes_what_is_there_and_nothing_else(store):
    for name in ("a/1", "a/b/2", "ab/3"):
        store.replace(name, b"")
    store.delete("a/1")
    store.delete("a/1")
    assert files(store) == ["a/b/2", "ab/3"]
    store.delete_all("a")
    store.delete_all("a")
    assert files(store) == ["ab/3"]
    assert store.folders("") == ["ab"]


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
    for url in ("s3://bucket/x", "gs://bucket"):
        with pytest.raises(BadInput, match=url.split(":")[0]):
            open_store(url)


def test_a_relative_folder_is_made_absolute_for_workers_that_start_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_store("out").url == str(tmp_path / "out")
