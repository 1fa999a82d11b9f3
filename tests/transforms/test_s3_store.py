import dataclasses
import importlib.machinery
import itertools
import logging
import pickle
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import pytest
import s3_double as net

from model.errors import BadInput
from transforms import s3_calls, s3_uploads
from transforms.s3_calls import client_of, crc_header
from transforms.s3_parts import MIB, S3
from transforms.s3_store import S3Store
from transforms.storage import Source, StoreError, open_store

moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")

KEY, SECRET, TOKEN = "AKIATESTONLY", "very+secret/key", "a-session-token"
numbers = itertools.count()


@pytest.fixture(scope="module")
def moto():
    # moto takes CRC32 for CRC32C where this package is not there, and sums only what it puts together itself: a sum
    # that we send is never held against the bytes by it.
    crc32c = types.ModuleType("crc32c")
    crc32c.__spec__ = importlib.machinery.ModuleSpec("crc32c", None)
    crc32c.crc32c = lambda data: google_crc32c.value(bytes(data))
    patch = pytest.MonkeyPatch()
    patch.setitem(sys.modules, "crc32c", crc32c)
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()
    patch.undo()


@pytest.fixture
def road(moto, monkeypatch):
    road = net.Road(*moto)
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", road.url)
    monkeypatch.setattr(s3_calls, "FIRST_PAUSE_S", 0.01)
    yield road
    road.close()


@pytest.fixture
def store(road):
    bucket = f"bucket-{next(numbers)}"
    found = dataclasses.replace(open_store(f"s3://{bucket}/out/here"), deadline_s=30.0)
    client_of(road.url, found.deadline_s).create_bucket(Bucket=bucket)
    yield found
    road.faults, road.rules = {}, {}
    assert uploads(found) == []


def uploads(store):
    found = client_of(store.endpoint, store.deadline_s).list_multipart_uploads(Bucket=store.bucket)
    return [u["Key"] for u in found.get("Uploads", [])]


def impatient(store):
    return S3Store(store.bucket, store.prefix, store.endpoint, deadline_s=1.0)


def crc(data):
    return google_crc32c.Checksum(data).hexdigest().decode()


def bytes_of(size, seed=1):
    return bytes((seed * k * k + k) % 251 for k in range(4096)) * (size // 4096 + 1)


def some(size, seed=1):
    return bytes_of(size, seed)[:size]


def test_what_is_put_is_there_with_size_version_checksum_and_any_range(store):
    assert store.put_if_absent("a/b c+ü%.bin", b"0123456789")
    stat = store.stat("a/b c+ü%.bin")
    assert (stat.size_bytes, stat.crc32c) == (10, crc(b"0123456789"))
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
        f.write(some(17 * MIB))
    sent = road.did("put_object") + road.did("upload_part")
    assert len(sent) == 1 + 3
    for request in sent:
        assert request.headers["x-amz-checksum-crc32c"] == crc_header(crc(request.body))
    assert road.did("create_multipart_upload")[0].headers["x-amz-checksum-type"] == "FULL_OBJECT"
    done = road.did("complete_multipart_upload")[0]
    assert done.headers["x-amz-checksum-crc32c"] == crc_header(crc(some(17 * MIB)))
    assert done.headers["x-amz-mp-object-size"] == str(17 * MIB)


@pytest.mark.parametrize("size", [0, 1, S3.sent, S3.sent + 1, 2 * S3.sent + 5])
def test_a_writer_gives_what_was_written_in_pieces_of_any_size(store, road, size):
    data = some(size)
    with store.writer("x/w.tif") as f:
        for at in range(0, size, 3_000_001):
            assert f.write(memoryview(data)[at : at + 3_000_001]) == len(data[at : at + 3_000_001])
        assert f.tell() == size
        f.flush()
        assert store.stat("x/w.tif") is None
    assert store.get("x/w.tif") == data
    assert store.stat("x/w.tif").crc32c == crc(data)
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
    first, second = some(10 * MIB), some(11 * MIB, 2)
    assert store.put_if_absent("big", first)
    assert not store.put_if_absent("big", second)
    assert store.get("big") == first
    assert not road.did("put_object")
    assert store.replace_if("big", second, store.stat("big").version)
    assert store.load("big").data == second


def put_all(store, sizes):
    sources, whole = [], b""
    for n, size in enumerate(sizes):
        data = some(size, n + 2)
        store.replace(f"work/{n:03d}.bin", data)
        sources.append(Source(f"work/{n:03d}.bin", size))
        whole += data
    return sources, whole


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
    sources, whole = put_all(store, sizes)
    store.replace("out.tif", b"what was there")
    stat = store.join("out.tif", some(head), sources, "work/join")
    want = some(head) + whole
    assert store.get("out.tif") == want
    assert (stat.size_bytes, stat.crc32c) == (len(want), crc(want))
    assert stat == store.stat("out.tif")


def test_a_join_downloads_no_more_than_its_plan_says(store, road):
    sources, _ = put_all(store, [12 * MIB, 6 * MIB, 6 * MIB])
    before = len(road.did("get_object"))
    store.join("out.tif", some(100_000), sources, "work/join")
    got = road.did("get_object")[before:]
    assert [r.headers["range"] for r in got] == [f"bytes=0-{5 * MIB - 100_000 - 1}"]
    copies = road.did("upload_part_copy")
    assert len(copies) == 3
    assert all(r.headers["x-amz-copy-source-if-match"] for r in copies)


def test_a_join_says_what_is_wrong_with_a_source(store):
    sources, _ = put_all(store, [18 * MIB, 4])
    with pytest.raises(FileNotFoundError, match="work/none"):
        store.join("out.tif", b"h", [*sources, Source("work/none", 4)], "work/join")
    with pytest.raises(StoreError, match="18874368 bytes in place of 7") as error:
        store.join("out.tif", b"h", [Source(sources[0].name, 7), sources[1]], "work/join")
    assert error.value.kind == "damaged"
    assert store.stat("out.tif") is None


@pytest.mark.parametrize("operation", ["upload_part_copy", "get_object"])
def test_a_source_that_is_written_over_while_it_is_joined_is_damage(store, road, operation):
    sources, _ = put_all(store, [18 * MIB, 4])
    other = some(18 * MIB, 9)

    def meanwhile(seen, handler, forward):
        client_of(store.endpoint, store.deadline_s).put_object(
            Bucket=store.bucket, Key=store.key(sources[0].name), Body=other
        )
        handler.reply(*forward())

    road.faults[operation] = [meanwhile]
    with pytest.raises(StoreError, match="written over while it was joined") as error:
        store.join("out.tif", b"h", sources, "work/join")
    assert error.value.kind == "damaged"
    assert store.stat("out.tif") is None


def test_a_source_that_goes_while_it_is_joined_is_named(store, road):
    sources, _ = put_all(store, [18 * MIB, 18 * MIB])

    def meanwhile(seen, handler, forward):
        store.delete(sources[1].name)
        handler.reply(*forward())

    road.rules["upload_part_copy"] = meanwhile
    with pytest.raises(FileNotFoundError, match="work/001"):
        store.join("out.tif", b"", sources, "work/join")
    assert store.stat("out.tif") is None


def test_joins_at_once_hold_no_more_parts_than_there_are_slots(store, road):
    sources, whole = put_all(store, [3 * MIB] * 16)
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
    assert {s.crc32c for s in stats} == {crc(b"h" + whole)}
    assert len(road.did("upload_part")) == 3 * 5  # and the last source copied
    assert most[0] <= s3_uploads.SLOTS


BURST = [net.refused(503, "SlowDown"), net.refused(500, "InternalError"), net.cut, net.refused(429, "TooManyRequests")]


def everything(store):
    """Every verb once, with what it must give."""
    assert store.put_if_absent("a/1", b"one")
    assert store.get("a/1") == b"one"
    assert store.stat("a/1").crc32c == crc(b"one")
    assert store.replace_if("a/1", b"two", store.load("a/1").version)
    store.replace("a/2", some(100_000))
    with store.writer("a/3") as f:
        f.write(some(20 * MIB))
    sources = [Source("a/3", 20 * MIB), Source("a/2", 100_000)]
    want = b"head" + some(20 * MIB) + some(100_000)
    assert store.join("b/out", b"head", sources, "a/join").crc32c == crc(want)
    assert store.get("b/out") == want
    assert store.names("a") == ["a/1", "a/2", "a/3"]
    assert store.folders("") == ["a", "b"]
    assert [e.name for e in store.walk("")] == ["a/1", "a/2", "a/3", "b/out"]
    store.delete("a/1")
    store.delete_all("a")
    assert [e.name for e in store.walk("")] == ["b/out"]
    store.sweep()


OPERATIONS = [
    "put_object", "get_object", "head_object", "create_multipart_upload", "upload_part", "upload_part_copy",
    "complete_multipart_upload", "list_objects_v2", "delete_object", "delete_objects", "list_multipart_uploads",
]  # fmt: skip


def test_no_fault_at_all(store):
    everything(store)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_burst_of_errors_is_survived(store, road, operation):
    road.faults[operation] = list(BURST)
    everything(store)
    assert road.faults[operation] == []


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o != "create_multipart_upload"])
def test_an_answer_that_is_lost_after_the_work_was_done_changes_nothing(store, road, operation):
    road.faults[operation] = [net.lost, None, net.lost]
    everything(store)


@pytest.mark.parametrize("operation", ["get_object", "list_objects_v2"])
def test_a_body_that_ends_early_is_read_again_from_its_beginning(store, road, operation):
    road.faults[operation] = [net.short, net.short, None, net.short]
    everything(store)


def test_a_body_that_breaks_off_half_way_into_a_large_object_is_whole_in_the_end(store, road):
    data = some(3 * MIB)
    store.replace("a", data)
    road.faults["get_object"] = [net.short, net.cut, net.short]
    assert store.get("a", 5) == data[5:]


def test_a_flipped_bit_is_seen_and_read_again_and_damage_that_stays_is_an_error(store, road):
    store.replace("a", b"abc")
    road.faults["get_object"] = [net.flipped]
    assert store.load("a").data == b"abc"
    road.rules["get_object"] = net.flipped
    with pytest.raises(StoreError, match="Damaged") as error:
        store.get("a")
    assert error.value.kind == "damaged"


def test_bytes_that_the_store_finds_damaged_each_time_are_an_error(store, road):
    road.rules["put_object"] = net.refused(400, "BadDigest")
    with pytest.raises(StoreError, match="BadDigest") as error:
        store.replace("a", b"abc")
    assert error.value.kind == "damaged"
    assert len(road.did("put_object")) == s3_calls.DAMAGED_TRIES


@pytest.mark.parametrize("operation", ["put_object", "complete_multipart_upload"])
def test_a_conflict_with_another_write_is_tried_again(store, road, monkeypatch, operation):
    monkeypatch.setattr("transforms.s3_store.ONE_PUT_BYTES", 9 * MIB)
    data = some(3 if operation == "put_object" else 10 * MIB)
    road.faults[operation] = [net.refused(409, "ConditionalRequestConflict")]
    assert store.put_if_absent("a", data)
    road.faults[operation] = [net.refused(409, "ConditionalRequestConflict")]
    assert not store.put_if_absent("a", some(len(data), 5))
    assert store.get("a") == data


@pytest.mark.parametrize("size", [3, 10 * MIB])
@pytest.mark.parametrize("there", [False, True])
def test_a_lost_answer_and_then_412_is_a_success_only_where_our_bytes_lie_there(store, road, monkeypatch, size, there):
    monkeypatch.setattr("transforms.s3_store.ONE_PUT_BYTES", 9 * MIB)
    operation = "put_object" if size == 3 else "complete_multipart_upload"
    if there:
        store.replace("a", some(size, 7))
    road.faults[operation] = [net.lost]
    assert store.put_if_absent("a", some(size)) is not there
    assert store.get("a") == some(size, 7 if there else 1)
    version = store.stat("a").version
    road.faults[operation] = [net.lost]
    assert store.replace_if("a", some(size, 8), version)
    assert store.get("a") == some(size, 8)


def test_a_lost_answer_is_resolved_without_the_stores_checksum_too(store, road):
    def silent(seen, handler, forward):
        status, headers, body = forward()
        handler.reply(status, [h for h in headers if "checksum" not in h[0].lower()], body)

    road.rules["head_object"] = road.rules["get_object"] = silent
    road.faults["put_object"] = [net.lost]
    assert store.put_if_absent("a", b"123")
    road.faults["complete_multipart_upload"] = [net.lost]
    with store.writer("b") as f:
        f.write(some(20 * MIB))
    assert store.get("b") == some(20 * MIB)
    assert store.stat("b").crc32c == ""


def test_another_object_of_the_same_size_after_a_lost_answer_is_no_success(store, road):
    def overtaken(seen, handler, forward):
        forward()
        client_of(store.endpoint, store.deadline_s).put_object(
            Bucket=store.bucket, Key=store.key("b"), Body=some(20 * MIB, 6)
        )
        net.cut(seen, handler, forward)

    road.faults["complete_multipart_upload"] = [overtaken]
    with pytest.raises(StoreError, match="ended by somebody else"), store.writer("b") as f:
        f.write(some(20 * MIB))
    assert store.get("b") == some(20 * MIB, 6)


@pytest.mark.parametrize("fault", [net.refused(503, "SlowDown"), net.cut], ids=["503", "reset"])
@pytest.mark.parametrize("operation", ["upload_part", "upload_part_copy", "complete_multipart_upload", "get_object"])
def test_what_fails_for_good_is_an_error_with_nothing_left_behind(store, road, operation, fault):
    sources, _ = put_all(store, [18 * MIB, 4])
    store.replace("out.tif", b"old")
    road.rules[operation] = fault
    with pytest.raises(StoreError, match=f"{operation} failed for 1 s") as error:
        impatient(store).join("out.tif", b"h", sources, "work/join")
    assert error.value.kind == "busy"
    if operation in ("upload_part", "complete_multipart_upload"):
        with pytest.raises(StoreError, match="failed for 1 s"), impatient(store).writer("out.tif") as f:
            f.write(some(20 * MIB))
    road.rules.clear()
    assert store.get("out.tif") == b"old"


def test_a_store_that_never_answers_is_given_up_at_the_deadline(store, road):
    road.rules["put_object"] = net.hung
    with pytest.raises(StoreError, match="put_object failed for 1 s, at last with ReadTimeoutError"):
        impatient(store).replace("a", b"1")
    road.rules.clear()
    assert store.stat("a") is None


@pytest.mark.parametrize(
    "status, code, kind, words",
    [
        (403, "AccessDenied", "refused", "s3:PutObject"),
        (403, "RequestTimeTooSkewed", "refused", "clock"),
        (404, "NoSuchBucket", "refused", "no such bucket"),
        (403, "InvalidAccessKeyId", "refused", "access key"),
        (400, "ExpiredToken", "refused", "log in"),
        (403, "QuotaExceeded", "full", "quota"),
        (507, "XMinioStorageFull", "full", "free space"),
        (418, "Teapot", "refused", "Teapot"),
    ],
)
def test_refusals_are_said_at_once_with_their_cure_and_without_the_stores_own_words(
    store, road, status, code, kind, words
):
    road.rules["put_object"] = net.refused(status, code)
    with pytest.raises(StoreError, match=words) as error:
        store.replace("a", b"1")
    assert error.value.kind == kind
    assert "SECRETUSER" not in str(error.value)
    assert len(road.did("put_object")) == 1
    assert pickle.loads(pickle.dumps(error.value)).kind == kind


def test_neither_errors_nor_logs_nor_the_store_itself_show_a_secret(store, road, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    sources, _ = put_all(store, [18 * MIB, 4])
    said = []
    for operation, fault in itertools.product(("upload_part_copy", "upload_part"), (net.cut, BURST[1])):
        road.rules = {operation: fault}
        with pytest.raises(StoreError) as error:
            impatient(store).join("out.tif", b"h", sources, "work/join")
        said += [str(error.value), repr(error.value)]
        assert error.value.__cause__ is None
        assert error.value.__context__ is None or error.value.__suppress_context__
    logs = [r.getMessage() for r in caplog.records if r.name != "werkzeug"]  # that is moto's own
    said += [repr(store), store.url, pickle.dumps(store).decode("latin1"), *logs]
    for text, secret in itertools.product(said, (KEY, SECRET, TOKEN, "uploadId", "Signature", "SECRETUSER")):
        assert secret not in text


def test_a_store_without_checksums_of_whole_uploads_is_written_to_all_the_same(store, road):
    road.faults["create_multipart_upload"] = [net.refused(501, "NotImplemented")]
    with store.writer("a") as f:
        f.write(some(20 * MIB))
    assert store.get("a") == some(20 * MIB)
    assert all("x-amz-checksum-crc32c" not in r.headers for r in road.did("upload_part"))


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
    bucket = f"bucket-{next(numbers)}"
    store = open_store(f"s3://{bucket}/")
    assert store.url == f"s3://{bucket}"
    client_of(road.url, store.deadline_s).create_bucket(Bucket=bucket)
    everything(store)
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
    assert sorted(uploads(store)) == ["out/here/now", "out/hereafter"]
    road.rules["list_multipart_uploads"] = net.refused(403, "AccessDenied")
    store.sweep()
    road.rules.clear()
    for upload in client.list_multipart_uploads(Bucket=store.bucket)["Uploads"]:
        client.abort_multipart_upload(Bucket=store.bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def rule(prefix="", **what):
    return {"ID": str(what), "Status": "Enabled", "Filter": {"Prefix": prefix}, **what}


ABORT = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}}
OLD = {"NoncurrentVersionExpiration": {"NoncurrentDays": 1}}


def test_a_bucket_in_order_is_of_no_concern_and_each_setting_that_is_not_has_its_sentence(store, monkeypatch):
    client = client_of(store.endpoint, store.deadline_s)

    def told(rules):
        client.put_bucket_lifecycle_configuration(Bucket=store.bucket, LifecycleConfiguration={"Rules": rules})
        return store.concerns()

    (one,) = store.concerns()
    assert "AbortIncompleteMultipartUpload" in one
    assert told([rule(**ABORT)]) == told([rule("out/", **ABORT)]) == []
    assert len(told([rule("out/here/2024", **ABORT)])) == len(told([rule("other/", **ABORT)])) == 1
    assert "deletes objects after 9 days" in told([rule(**ABORT), rule("out/", Expiration={"Days": 9})])[0]
    client.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})
    assert "noncurrent versions" in told([rule(**ABORT)])[0]
    assert told([rule(**ABORT), rule(**OLD)]) == []
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert "lies in us-east-1 and AWS_REGION is eu-west-1" in store.concerns()[0]
    assert list(store.walk("")) == []


def test_a_lock_on_every_object_is_a_concern(road):
    store = open_store(f"s3://bucket-{next(numbers)}/out")
    client = client_of(road.url, store.deadline_s)
    client.create_bucket(Bucket=store.bucket, ObjectLockEnabledForBucket=True)
    assert not any("locks every object" in s for s in store.concerns())
    client.put_object_lock_configuration(
        Bucket=store.bucket,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 30}},
        },
    )
    assert any("locks every object for 30 days" in s for s in store.concerns())


def test_a_bucket_that_is_not_there_or_not_to_be_written_is_refused_before_work(store, road):
    with pytest.raises(BadInput, match="no such bucket"):
        open_store("s3://nowhere-at-all/x").concerns()
    road.rules["create_multipart_upload"] = net.refused(403, "AccessDenied")
    with pytest.raises(BadInput, match="s3:PutObject"):
        store.concerns()


def test_settings_that_may_not_be_looked_at_are_named(store, road):
    road.rules["get_bucket"] = net.refused(403, "AccessDenied")
    (said,) = store.concerns()
    assert "lifecycle and versioning and object lock" in said


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
