import itertools
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import s3_double as net

from model.errors import BadInput
from transforms import s3_calls, s3_uploads
from transforms.s3_calls import client_of, crc_header
from transforms.s3_parts import MIB, S3
from transforms.s3_store import S3Store
from transforms.storage import Source, StoreError, open_store

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")

moto, road, store = net.FIXTURES


def test_what_is_put_is_there_with_size_version_checksum_and_any_range(store):
    assert store.put_if_absent("a/b c+ü%.bin", b"0123456789")
    stat = store.stat("a/b c+ü%.bin")
    assert (stat.size_bytes, stat.crc32c) == (10, net.crc(b"0123456789"))
    assert store.load("a/b c+ü%.bin") == (b"0123456789", stat.version)
    name = "a/b c+ü%.bin"
    assert [store.get(name), store.get(name, 3), store.get(name, 3, 2), store.get(name, 9, 5)] == [
        b"0123456789", b"3456789", b"34", b"9",
    ]  # fmt: skip
    assert [store.get(name, 10), store.get(name, 20, 5), store.get(name, 3, 0)] == [b"", b"", b""]
    for missing in (lambda: store.get("none"), lambda: store.load("none"), lambda: store.get("none", 1, 0)):
        with pytest.raises(FileNotFoundError, match="out/here/none"):
            missing()
    assert store.stat("none") is None


@pytest.mark.parametrize("share", [0, 0.5], ids=["no body", "half a body"])
def test_an_object_that_a_proxy_says_is_not_there_is_not_there(store, road, share):
    def bare(seen, handler, forward):
        status, headers, body = net.error(404, "NoSuchKey")
        handler.reply(status, headers, body[: int(len(body) * share)])

    store.replace("a", b"1")
    road.rules["get_object"] = bare
    for ask in (lambda: store.get("a"), lambda: store.get("a", 0, 1), lambda: store.load("a")):
        with pytest.raises(FileNotFoundError, match="out/here/a is not there"):
            ask()
    assert len(road.did("get_object")) == 3, "an answer, hence not asked again"


def test_an_empty_object_is_one(store):
    store.replace("e", b"")
    assert store.get("e") == store.get("e", 0, 5) == b""
    assert store.stat("e").size_bytes == 0
    assert store.put_if_absent("e", b"x") is False


def test_a_second_put_changes_nothing_and_a_replacement_wants_the_version_that_is_there(store):
    assert store.put_if_absent("a", b"first")
    assert not store.put_if_absent("a", b"second")
    old = store.load("a")
    assert store.replace_if("a", b"third", old.version)
    assert not store.replace_if("a", b"fourth", old.version)
    assert store.get("a") == b"third"
    assert not store.replace_if("none", b"x", old.version)
    assert store.stat("none") is None
    assert store.replace_if("new", b"x", "")
    assert not store.replace_if("new", b"y", "")


def test_the_same_bytes_put_twice_are_one_win_where_every_answer_arrived(store):
    assert store.put_if_absent("a", b"same")
    assert not store.put_if_absent("a", b"same")


def test_of_sixteen_threads_one_wins_and_its_bytes_are_whole(store):
    for n in range(4):
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda k, n=n: store.put_if_absent(f"r{n}", bytes([k]) * 100_000), range(16)))
        assert won.count(True) == 1
        assert store.get(f"r{n}") == bytes([won.index(True)]) * 100_000


def test_every_write_carries_the_crc32c_of_its_bytes(store, road):
    store.replace("a", b"123")
    with store.writer("b") as f:
        f.write(net.some(17 * MIB))
    sent = road.did("put_object") + road.did("upload_part")
    assert len(sent) == 1 + 3
    for request in sent:
        assert request.headers["x-amz-checksum-crc32c"] == crc_header(net.crc(request.body))
    assert road.did("create_multipart_upload")[0].headers["x-amz-checksum-type"] == "FULL_OBJECT"
    done = road.did("complete_multipart_upload")[0]
    assert done.headers["x-amz-checksum-crc32c"] == crc_header(net.crc(net.some(17 * MIB)))
    assert done.headers["x-amz-mp-object-size"] == str(17 * MIB)


@pytest.mark.parametrize("size", [0, 1, S3.sent, S3.sent + 1, 2 * S3.sent + 5])
def test_a_writer_gives_what_was_written_in_pieces_of_any_size(store, road, size):
    data = net.some(size)
    with store.writer("x/w.tif") as f:
        for at in range(0, size, 3_000_001):
            assert f.write(memoryview(data)[at : at + 3_000_001]) == len(data[at : at + 3_000_001])
        assert f.tell() == size
        f.flush()
        assert store.stat("x/w.tif") is None
    assert store.get("x/w.tif") == data
    assert store.stat("x/w.tif").crc32c == net.crc(data)
    assert len(road.did("put_object")) == (size <= S3.sent)


def test_a_writer_that_raises_leaves_nothing_and_what_was_there_stays(store):
    store.replace("old", b"old")
    for name, size in itertools.product(("old", "new"), (3, 20 * MIB)):
        with pytest.raises(ZeroDivisionError), store.writer(name) as f:
            f.write(bytes(size))
            1 / 0  # noqa: B018
    assert store.get("old") == b"old"
    assert store.stat("new") is None


def test_large_bytes_are_put_in_parts_under_the_same_conditions(store, road, monkeypatch):
    monkeypatch.setattr("transforms.s3_store.ONE_PUT_BYTES", 9 * MIB)
    first, second = net.some(10 * MIB), net.some(11 * MIB, 2)
    assert store.put_if_absent("big", first)
    assert not store.put_if_absent("big", second)
    assert store.get("big") == first
    assert not road.did("put_object")
    assert store.replace_if("big", second, store.stat("big").version)
    assert store.load("big").data == second


@pytest.mark.parametrize(
    "head, sizes",
    [
        (100, []),
        (0, [7]),
        (1000, [4000, 1, 700]),
        (0, [18 * MIB]),
        (100_000, [12 * MIB, 6 * MIB, 3]),
        (100_000, [12 * MIB, 1, 200, 5 * MIB, MIB, 7 * MIB + 1, MIB]),
    ],
)
def test_a_join_is_the_head_and_the_sources_one_after_another(store, head, sizes):
    sources, whole = net.put_all(store, sizes)
    store.replace("out.tif", b"what was there")
    stat = store.join("out.tif", net.some(head), sources, "work/join")
    want = net.some(head) + whole
    assert store.get("out.tif") == want
    assert (stat.size_bytes, stat.crc32c) == (len(want), net.crc(want))
    assert stat == store.stat("out.tif")


def test_a_join_downloads_no_more_than_its_plan_says(store, road):
    sources, _ = net.put_all(store, [12 * MIB, 6 * MIB, 6 * MIB])
    before = len(road.did("get_object"))
    store.join("out.tif", net.some(100_000), sources, "work/join")
    got = road.did("get_object")[before:]
    assert [r.headers["range"] for r in got] == [f"bytes=0-{5 * MIB - 100_000 - 1}"]
    copies = road.did("upload_part_copy")
    assert len(copies) == 3
    assert all(r.headers["x-amz-copy-source-if-match"] for r in copies)


def test_a_join_says_what_is_wrong_with_a_source(store):
    sources, _ = net.put_all(store, [18 * MIB, 4])
    with pytest.raises(FileNotFoundError, match="work/none"):
        store.join("out.tif", b"h", [*sources, Source("work/none", 4)], "work/join")
    with pytest.raises(StoreError, match="18874368 bytes in place of 7") as error:
        store.join("out.tif", b"h", [Source(sources[0].name, 7), sources[1]], "work/join")
    assert error.value.kind == "damaged"
    assert store.stat("out.tif") is None


@pytest.mark.slow
def test_joins_at_once_hold_no_more_parts_than_there_are_slots(store, road):
    sources, whole = net.put_all(store, [3 * MIB] * 16)
    held, most, lock = [0], [0], threading.Lock()

    def counted(seen, handler, forward):
        with lock:
            held[0] += 1
            most[0] = max(most[0], held[0])
        answer = forward()
        with lock:
            held[0] -= 1
        handler.reply(*answer)

    road.rules["upload_part"] = counted
    with ThreadPoolExecutor(3) as pool:
        stats = list(pool.map(lambda n: store.join(f"out{n}", b"h", sources, "work/join"), range(3)))
    assert {s.crc32c for s in stats} == {net.crc(b"h" + whole)}
    assert len(road.did("upload_part")) == 3 * 5  # and the last source copied
    assert most[0] <= s3_uploads.SLOTS


def test_every_verb_in_one_breath(store):
    net.everything(store)


def test_listings_are_paged_sorted_one_level_deep_and_without_marks_of_folders(store, road, monkeypatch):
    names = [f"d/{n:02d}" for n in range(7)] + ["d/e/1", "d/f/2", "d-/x", "b"]
    for name in [*names, "d/"]:
        store.replace(name, b"")
    monkeypatch.setattr("transforms.s3_store.KEYS_PER_CALL", 3)
    assert store.names("d") == [f"d/{n:02d}" for n in range(7)]
    assert store.names("") == ["b"]
    assert store.folders("d") == ["d/e", "d/f"]
    assert store.folders("") == ["d", "d-"]
    assert [e.name for e in store.walk("")] == sorted(names)
    assert [e.name for e in store.walk("d/e")] == ["d/e/1"]
    assert store.names("none") == store.folders("none") == list(store.walk("none")) == []
    store.delete_all("d")
    assert [e.name for e in store.walk("")] == ["b", "d-/x"]
    assert len(road.did("delete_objects")) == 4


def test_a_key_that_could_not_be_deleted_is_tried_again_and_named_where_it_stays(store, road):
    for name in ("a/1", "a/2"):
        store.replace(name, b"")

    def half(seen, handler, forward):
        key = store.key("a/2")
        body = f"<DeleteResult><Error><Key>{key}</Key><Code>InternalError</Code></Error></DeleteResult>".encode()
        handler.reply(200, [("Content-Type", "application/xml")], body)

    road.rules = {"delete_objects": half, "delete_object": net.refused(403, "AccessDenied")}
    with pytest.raises(StoreError, match="a/2: delete_object was refused"):
        store.delete_all("a")
    road.rules = {"delete_objects": half}
    store.delete_all("a")
    assert store.names("a") == ["a/1"]


def test_a_bucket_as_a_whole_is_a_store_too(road):
    store = net.bucket("")
    assert store.url == f"s3://{store.bucket}"
    net.everything(store)
    store.delete_all("")
    assert list(store.walk("")) == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "..", "a\0"])
def test_a_name_that_leads_out_is_refused_before_any_request(store, road, name):
    road.seen.clear()
    for verb in (
        lambda: store.put_if_absent(name, b""),
        lambda: store.replace(name, b""),
        lambda: store.get(name),
        lambda: store.stat(name),
        lambda: store.names(name),
        lambda: list(store.walk(name)),
        lambda: store.delete_all(name),
        lambda: store.writer(name).__enter__(),
        lambda: store.join("a", b"", [Source(name, 1)], "s"),
    ):
        with pytest.raises(BadInput, match="leads out of"):
            verb()
    assert road.seen == []


def test_a_sweep_ends_uploads_older_than_a_day_by_the_stores_clock_and_no_others(store, road):
    client = client_of(store.endpoint, store.deadline_s)
    for key in ("out/here/old", "out/here/now", "out/hereafter"):
        client.create_multipart_upload(Bucket=store.bucket, Key=key)

    def dated(seen, handler, forward):  # moto gives every upload one date of 2010
        status, headers, body = forward()
        head, *entries = body.decode().split("<Upload>")
        entries = [e.replace("2010-11-10T20:48:33", "2010-11-12T00:00:00") if "/now<" in e else e for e in entries]
        headers = [h for h in headers if h[0] != "Date"] + [("Date", "Fri, 12 Nov 2010 01:00:00 GMT")]
        handler.reply(status, headers, "<Upload>".join([head, *entries]).encode())

    road.rules["list_multipart_uploads"] = dated
    store.sweep()
    road.rules.clear()
    assert sorted(net.uploads(store)) == ["out/here/now", "out/hereafter"]
    road.rules["list_multipart_uploads"] = net.refused(403, "AccessDenied")
    store.sweep()
    road.rules.clear()
    for upload in client.list_multipart_uploads(Bucket=store.bucket)["Uploads"]:
        client.abort_multipart_upload(Bucket=store.bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def test_a_store_travels_between_processes_and_threads_share_one_client(store):
    assert pickle.loads(pickle.dumps(store)) == store
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: client_of(store.endpoint, 77.0), range(8)))
    assert all(c is found[0] for c in found)


@pytest.mark.parametrize(
    "url", ["s3://ab/x", "s3://KEY:SECRET@bucket/x", "s3:///x", "s3://Bucket/x", "s3://b--x-s3/x", "s3://bucket/a/../b"]
)
def test_what_is_no_place_in_a_bucket_is_refused_without_showing_keys(url):
    with pytest.raises(BadInput) as error:
        open_store(url)
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize("endpoint", ["ftp://x", "http://me:SECRET@host", "localhost:9000", "http://h/?token=SECRET"])
def test_an_endpoint_that_is_none_is_refused_without_showing_it(monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(BadInput, match="AWS_ENDPOINT_URL_S3") as error:
        open_store("s3://bucket")
    assert "SECRET" not in str(error.value)


def test_without_boto3_the_command_that_installs_it_is_named(monkeypatch):
    find = s3_calls.importlib.util.find_spec
    monkeypatch.setattr(s3_calls.importlib.util, "find_spec", lambda n: None if n == "boto3" else find(n))
    with pytest.raises(BadInput, match=r"pip install 'tessera-beam\[s3\]'"):
        S3Store("bucket").stat("a")
