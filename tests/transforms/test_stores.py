import dataclasses
import itertools
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import pytest
from store_places import PLACES, servers_ended

from model.errors import BadInput
from transforms.storage import Source, StoreError

ODD_NAMES = ("a b", "ä/ö ü", "100%25", "a#b", "q?x=1&y", "x+y", "日本.tif", "a'b\"c", "~", "a/.b", "c;d", "[e]*{f}")


@pytest.fixture(scope="module", autouse=True)
def servers():
    with servers_ended():
        yield


# moto takes seconds where the others take milliseconds: `test_s3_store` and `test_s3_parts` are for every run.
@pytest.fixture(params=[pytest.param(p, marks=[pytest.mark.slow] if p == "moto" else []) for p in PLACES])
def store(request):
    with PLACES[request.param]() as made:
        yield made


def objects(store):
    return [e.name for e in store.walk("")]


def crc32c(data):
    return google_crc32c.Checksum(data).hexdigest().decode()


def at_once(n, act):
    """`act(k)` in n threads that start together."""
    ready = threading.Barrier(n)

    def run(k):
        ready.wait()
        return act(k)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(run, range(n)))


def test_what_is_put_is_there_with_its_size_and_any_range_of_it(store):
    assert store.put_if_absent("a/b/c.bin", b"0123456789")
    assert store.get("a/b/c.bin") == b"0123456789"
    assert store.stat("a/b/c.bin").size_bytes == 10
    assert store.stat("a/b/c.bin").crc32c in ("", crc32c(b"0123456789"))
    ranges = ((3, None), (3, 2), (9, 5), (0, 10), (0, 99), (0, 1), (9, None))
    assert [store.get("a/b/c.bin", *r) for r in ranges] == [
        b"0123456789"[a : None if n is None else a + n] for a, n in ranges
    ]
    assert [store.get("a/b/c.bin", *r) for r in ((10, None), (10, 1), (99, 5), (0, 0), (5, 0))] == [b""] * 5


def test_an_empty_object_is_an_object(store):
    assert store.put_if_absent("a", b"")
    assert not store.put_if_absent("a", b"")
    with store.writer("b"):
        pass
    for name in ("a", "b"):
        assert store.get(name) == store.get(name, 0, 5) == store.load(name).data == b""
        assert store.stat(name).size_bytes == 0
    assert [e.stat.size_bytes for e in store.walk("")] == [0, 0]


def test_a_second_put_changes_nothing_and_says_so(store):
    assert store.put_if_absent("a", b"first")
    before = store.stat("a")
    assert not store.put_if_absent("a", b"second")
    assert not store.put_if_absent("a", b"first")
    assert store.get("a") == b"first"
    assert store.stat("a") == before
    assert objects(store) == ["a"]


def test_replace_writes_over_and_creates(store):
    store.replace("x/a", b"1")
    before = store.stat("x/a")
    store.replace("x/a", b"22")
    assert store.get("x/a") == b"22"
    assert store.stat("x/a").version != before.version
    assert store.stat("x/a").changed_s >= before.changed_s > 1.6e9
    assert objects(store) == ["x/a"]


def test_an_object_is_replaced_only_over_the_version_that_was_read(store):
    assert store.replace_if("a", b"1", "")
    assert not store.replace_if("a", b"2", "")
    first = store.load("a")
    assert (first.data, first.version) == (b"1", store.stat("a").version)
    assert store.replace_if("a", b"22", first.version)
    assert not store.replace_if("a", b"333", first.version)
    assert store.load("a").data == b"22"
    second = store.load("a").version
    store.delete("a")
    assert not store.replace_if("a", b"4", second)
    assert store.stat("a") is None


def test_a_listing_gives_the_versions_that_a_look_gives(store):
    for k in range(3):
        store.replace(f"a/{k}", bytes([k]) * k)
    for entry in store.walk("a"):
        seen = store.stat(entry.name)
        assert entry.stat in (seen, dataclasses.replace(seen, crc32c=""))  # S3 lists no checksums


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_of_sixteen_threads_that_put_one_name_exactly_one_wins_and_its_bytes_are_whole(store, size):
    for n in range(3):
        won = at_once(16, lambda k, n=n: store.put_if_absent(f"round{n}/x", bytes([k]) * size))
        assert won.count(True) == 1
        assert store.get(f"round{n}/x") == bytes([won.index(True)]) * size
    assert objects(store) == [f"round{n}/x" for n in range(3)]


def test_of_sixteen_threads_that_replace_one_version_exactly_one_wins(store):
    store.replace("x", b"start")
    for _ in range(3):
        version = store.load("x").version
        won = at_once(16, lambda k, version=version: store.replace_if("x", os.urandom(8) + bytes([k]), version))
        assert won.count(True) == 1
        assert store.get("x")[8] == won.index(True)


def test_sixteen_threads_that_add_to_one_object_lose_nothing(store):
    store.replace("x", b"")

    def add(k):
        for _ in range(400):
            found = store.load("x")
            if store.replace_if("x", found.data + bytes([k]), found.version):
                return
        raise AssertionError("never won")

    at_once(8, add)
    assert sorted(store.get("x")) == list(range(8))


def test_a_writer_that_raises_leaves_nothing_and_what_was_there_stays(store):
    class Stopped(BaseException):
        pass

    store.replace("x/old", b"old")
    for name, size in itertools.product(("x/old", "x/new"), (4, 9 << 20)):
        with pytest.raises(Stopped), store.writer(name) as f:
            f.write(b"h" * size)
            raise Stopped
        f.close()
        del f
    assert objects(store) == ["x/old"]
    assert store.get("x/old") == b"old"
    assert store.stat("x/new") is None


def test_nothing_is_seen_of_an_object_before_its_writer_has_ended(store):
    with store.writer("x/a") as f:
        f.write(b"1" * (9 << 20))
        f.flush()
        assert store.stat("x/a") is None
        assert store.names("x") == []
        assert store.names("") == []
        assert objects(store) == []
    assert store.names("x") == ["x/a"]


@pytest.mark.parametrize("sizes", [(1, 2, 3), (8 << 20,), (8 << 20, 1), (3 << 20, 17_000_001), (1, 16 << 20)])
def test_a_writer_writes_what_it_is_given_in_pieces_of_any_size(store, sizes):
    data = os.urandom(sum(sizes))
    store.replace("x", b"older")
    with store.writer("x") as f:
        at = 0
        for size in sizes:
            assert f.write(memoryview(data)[at : at + size]) == size
            at += size
            assert f.tell() == at
    assert store.get("x") == data
    assert store.stat("x").crc32c in ("", crc32c(data))
    assert store.get("x", len(data) - 1, 5) == data[-1:]


def test_large_objects_are_put_whole_or_not_at_all(store):
    data = os.urandom((8 << 20) + 1)
    assert store.put_if_absent("x", data)
    assert not store.put_if_absent("x", data[::-1])
    assert store.load("x").data == data


def test_a_reader_never_sees_half_an_object_while_another_replaces_it(store):
    contents = [bytes([65 + k]) * (1 + 37_000 * k) for k in range(4)]
    store.replace("a", contents[0])

    def read():
        return {store.get("a") for _ in range(20)}

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for n in itertools.count():
            store.replace("a", contents[n % 4])
            if all(r.done() for r in readers):
                break
    assert set().union(*(r.result() for r in readers)) <= set(contents)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/..", "/etc/x", ".."])
def test_a_name_that_leads_out_of_the_root_is_refused(store, name):
    for verb in (
        lambda: store.put_if_absent(name, b""),
        lambda: store.replace(name, b""),
        lambda: store.replace_if(name, b"", "1"),
        lambda: store.writer(name).__enter__(),
        lambda: store.join(name, b"", [], "scratch"),
        lambda: store.join("a", b"head", [Source(name, 1)], "scratch"),
        lambda: store.get(name),
        lambda: store.load(name),
        lambda: store.stat(name),
        lambda: store.names(name),
        lambda: store.folders(name),
        lambda: list(store.walk(name)),
        lambda: store.delete(name),
        lambda: store.delete_all(name),
    ):
        with pytest.raises(BadInput, match="leads out of"):
            verb()


def test_listings_are_sorted_one_level_deep_and_empty_where_nothing_is(store):
    for name in ("b", "a", "d/2", "d/1", "d/e/3", "f/4"):
        store.replace(name, b"")
    assert store.names("") == ["a", "b"]
    assert store.folders("") == ["d", "f"]
    assert store.names("d") == ["d/1", "d/2"]
    assert store.folders("d") == ["d/e"]
    for prefix in ("none", "a", "a/b"):  # "a" is an object
        assert store.names(prefix) == store.folders(prefix) == list(store.walk(prefix)) == []


def test_a_walk_gives_every_object_below_a_folder_in_the_order_of_the_names(store):
    names = ["a", "a b", "a-1", "a.b", "a/1", "a/b/2", "a0", "ab/3", "ä", "Z", "a/b-1", "a/b.x/y"]
    for name in names:
        with_folder = name in ("a", "ä") or "/" not in name
        store.replace(f"top/{name}" + ".json" * with_folder, name.encode())
    found = [e.name for e in store.walk("top")]
    assert found == sorted(found)
    assert len(found) == len(names)
    assert [e.name for e in store.walk("")] == found
    assert [e.name for e in store.walk("top/a")] == ["top/a/1", "top/a/b-1", "top/a/b.x/y", "top/a/b/2"]
    assert [e.name for e in store.walk("top/a/b")] == ["top/a/b/2"]


def test_a_listing_of_several_pages_is_whole(store):
    wanted = sorted([f"many/{k}" for k in range(130)] + [f"many/f{k}/x" for k in range(3)])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: store.replace(name, b"x"), wanted))
    assert [e.name for e in store.walk("many")] == wanted
    assert store.names("many") == wanted[:130]
    assert store.folders("many") == ["many/f0", "many/f1", "many/f2"]
    store.delete_all("many")
    assert objects(store) == []


def test_names_may_hold_what_files_may_be_called(store):
    for name in ODD_NAMES:
        assert store.put_if_absent(f"odd/{name}", name.encode())
    assert objects(store) == sorted(f"odd/{n}" for n in ODD_NAMES)
    for name in ODD_NAMES:
        assert store.get(f"odd/{name}") == store.load(f"odd/{name}").data == name.encode()
        assert store.get(f"odd/{name}", 1, 2) == name.encode()[1:3]
        assert store.stat(f"odd/{name}").size_bytes == len(name.encode())
    assert store.names("odd/ä") == ["odd/ä/ö ü"]
    assert store.folders("odd") == ["odd/a", "odd/ä"]
    stat = store.join("odd/joined #1", b"<", [Source(f"odd/{n}", len(n.encode())) for n in ODD_NAMES], "s %/ü")
    assert store.get("odd/joined #1") == b"<" + "".join(ODD_NAMES).encode()
    assert stat.size_bytes == 1 + len("".join(ODD_NAMES).encode())
    for name in ODD_NAMES:
        store.delete(f"odd/{name}")
    store.delete_all("s %")
    assert objects(store) == ["odd/joined #1"]


def test_a_folder_is_no_object(store):
    store.replace("d/1", b"")
    assert store.stat("none/1") is None
    assert store.stat("d/1/x") is None
    for read in (store.get, store.load, lambda name: store.get(name, 3, 5), lambda name: store.get(name, 0, 0)):
        with pytest.raises(FileNotFoundError):
            read("d/2")


def test_deleting_removes_what_is_there_and_nothing_else(store):
    for name in ("a/1", "a/b/2", "ab/3"):
        store.replace(name, b"")
    store.delete("a/1")
    store.delete("a/1")
    assert objects(store) == ["a/b/2", "ab/3"]
    store.delete_all("a")
    store.delete_all("a")
    assert objects(store) == ["ab/3"]
    assert store.folders("") == ["ab"]


def test_a_sweep_leaves_every_object_and_whoever_is_at_work(store):
    store.replace("a", b"1")
    with store.writer("b") as f:
        f.write(b"2")
        store.sweep()
    store.sweep()
    assert objects(store) == ["a", "b"]


def parts_of(store, n, sizes):
    """n sources, some of them the same object, and their bytes."""
    contents = [os.urandom(sizes[k % len(sizes)]) for k in range(min(n, 37))]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: store.replace(f"parts/{k}", contents[k]), range(len(contents))))
    order = [k * 5 % len(contents) for k in range(n)]
    return [Source(f"parts/{k}", len(contents[k])) for k in order], b"".join(contents[k] for k in order)


@pytest.mark.parametrize("n", [0, 1, 2, 31, 32, 33, 70, pytest.param(1100, marks=pytest.mark.slow)])
def test_a_join_is_the_head_and_the_sources_one_after_another(store, n):
    head = b"" if n == 32 else b"the header"
    sources, data = parts_of(store, n, (1, 4097, 333, 70_001))
    store.replace("out.tif", b"older")
    stat = store.join("out.tif", head, sources, "parts/join")
    assert store.get("out.tif") == head + data
    assert (stat.size_bytes, stat.crc32c) == (len(head + data), crc32c(head + data))
    assert store.stat("out.tif").version == stat.version


def test_a_join_of_sources_that_are_large_small_and_large_again_is_right(store):
    sources, data = parts_of(store, 5, ((6 << 20) + 1, 17, (5 << 20) - 1, 1, 12 << 20))
    stat = store.join("out.tif", b"head", sources, "parts/join")
    assert store.get("out.tif") == b"head" + data
    assert stat.crc32c == crc32c(b"head" + data)


def test_a_join_may_be_repeated_with_the_same_scratch_and_leaves_nothing_outside_it(store):
    sources, data = parts_of(store, 40, (1000, 3))
    first = store.join("out.tif", b"head", sources, "parts/join")
    in_scratch = [n for n in objects(store) if n.startswith("parts/join")]
    second = store.join("out.tif", b"HEAD", sources[:39], "parts/join")
    assert second.size_bytes == first.size_bytes - sources[-1].size_bytes
    assert store.get("out.tif") == b"HEAD" + data[: -sources[-1].size_bytes]
    store.join("out.tif", b"head", sources, "parts/join")
    assert store.get("out.tif") == b"head" + data
    assert [n for n in objects(store) if n.startswith("parts/join")] == in_scratch
    store.delete_all("parts")
    assert objects(store) == ["out.tif"]


def test_two_workers_that_join_the_same_at_once_both_succeed(store):
    sources, data = parts_of(store, 40, (1000, 3))
    for stat in at_once(3, lambda _: store.join("out.tif", b"head", sources, "parts/join")):
        assert stat.crc32c == crc32c(b"head" + data)
    assert store.get("out.tif") == b"head" + data


@pytest.mark.parametrize("at", [0, 1, 35])
def test_a_join_without_one_of_its_sources_shows_nothing_at_the_target(store, at):
    sources, _ = parts_of(store, 36, (100,))
    store.delete(sources[at].name)
    with pytest.raises(FileNotFoundError, match=sources[at].name):
        store.join("out.tif", b"head", sources, "parts/join")
    assert store.stat("out.tif") is None
    store.replace("out.tif", b"older")
    with pytest.raises(FileNotFoundError):
        store.join("out.tif", b"head", sources[at : at + 1], "parts/join")
    assert store.get("out.tif") == b"older"


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("n", [1, 36])
def test_a_source_of_another_size_is_damage_and_nothing_shows_at_the_target(store, n, by):
    sources, _ = parts_of(store, n, (100,))
    wrong = sources[-1]._replace(size_bytes=100 + by)
    with pytest.raises(StoreError, match=f"{wrong.name} has 100 bytes in place of {100 + by}") as e:
        store.join("out.tif", b"head", [*sources[:-1], wrong], "parts/join")
    assert e.value.kind == "damaged"
    assert store.stat("out.tif") is None


def test_a_store_travels_to_other_processes(store):
    store.replace("a", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert again.url == store.url
    assert again.get("a") == b"1"


def test_a_good_place_gives_no_concern(store):
    assert store.concerns() == []
