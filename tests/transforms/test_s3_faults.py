import itertools
import logging
import pickle

import pytest
import s3_double as net

from transforms import s3_calls
from transforms.s3_calls import client_of
from transforms.s3_parts import MIB
from transforms.storage import StoreError

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")

pytestmark = pytest.mark.slow  # patience is waited for, by a server that is slow itself

moto, road, store = net.FIXTURES


@pytest.mark.parametrize("operation", ["upload_part_copy", "get_object"])
def test_a_source_that_is_written_over_while_it_is_joined_is_damage(store, road, operation):
    sources, _ = net.put_all(store, [18 * MIB])
    other = net.some(18 * MIB, 9)

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
    sources, _ = net.put_all(store, [18 * MIB, 18 * MIB])

    def meanwhile(seen, handler, forward):
        store.delete(sources[1].name)
        handler.reply(*forward())

    road.rules["upload_part_copy"] = meanwhile
    with pytest.raises(FileNotFoundError, match="work/001"):
        store.join("out.tif", b"", sources, "work/join")
    assert store.stat("out.tif") is None


BURST = [net.refused(503, "SlowDown"), net.refused(500, "InternalError"), net.cut, net.refused(429, "TooManyRequests")]


OPERATIONS = [
    "put_object", "get_object", "head_object", "create_multipart_upload", "upload_part", "upload_part_copy",
    "complete_multipart_upload", "list_objects_v2", "delete_object", "delete_objects", "list_multipart_uploads",
]  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_burst_of_errors_is_survived(store, road, operation):
    road.faults[operation] = list(BURST)
    net.everything(store)
    assert road.faults[operation] == []


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o != "create_multipart_upload"])
def test_an_answer_that_is_lost_after_the_work_was_done_changes_nothing(store, road, operation):
    road.faults[operation] = [net.lost, None, net.lost]
    net.everything(store)


@pytest.mark.parametrize("operation", ["get_object", "list_objects_v2"])
def test_a_body_that_ends_early_is_read_again_from_its_beginning(store, road, operation):
    road.faults[operation] = [net.short, net.short, None, net.short]
    net.everything(store)


def test_a_body_that_breaks_off_half_way_into_a_large_object_is_whole_in_the_end(store, road):
    data = net.some(3 * MIB)
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
    data = net.some(3 if operation == "put_object" else 10 * MIB)
    road.faults[operation] = [net.refused(409, "ConditionalRequestConflict")]
    assert store.put_if_absent("a", data)
    road.faults[operation] = [net.refused(409, "ConditionalRequestConflict")]
    assert not store.put_if_absent("a", net.some(len(data), 5))
    assert store.get("a") == data


@pytest.mark.parametrize("size", [3, 10 * MIB])
@pytest.mark.parametrize("there", [False, True])
def test_a_lost_answer_and_then_412_is_a_success_only_where_our_bytes_lie_there(store, road, monkeypatch, size, there):
    monkeypatch.setattr("transforms.s3_store.ONE_PUT_BYTES", 9 * MIB)
    operation = "put_object" if size == 3 else "complete_multipart_upload"
    if there:
        store.replace("a", net.some(size, 7))
    road.faults[operation] = [net.lost]
    assert store.put_if_absent("a", net.some(size)) is not there
    assert store.get("a") == net.some(size, 7 if there else 1)
    version = store.stat("a").version
    road.faults[operation] = [net.lost]
    assert store.replace_if("a", net.some(size, 8), version)
    assert store.get("a") == net.some(size, 8)


def test_a_lost_answer_is_resolved_without_the_stores_checksum_too(store, road):
    def silent(seen, handler, forward):
        status, headers, body = forward()
        handler.reply(status, [h for h in headers if "checksum" not in h[0].lower()], body)

    road.rules["head_object"] = road.rules["get_object"] = silent
    road.faults["put_object"] = [net.lost]
    assert store.put_if_absent("a", b"123")
    road.faults["complete_multipart_upload"] = [net.lost]
    with store.writer("b") as f:
        f.write(net.some(20 * MIB))
    assert store.get("b") == net.some(20 * MIB)
    assert store.stat("b").crc32c == ""


def test_another_object_of_the_same_size_after_a_lost_answer_is_no_success(store, road):
    def overtaken(seen, handler, forward):
        forward()
        client_of(store.endpoint, store.deadline_s).put_object(
            Bucket=store.bucket, Key=store.key("b"), Body=net.some(20 * MIB, 6)
        )
        net.cut(seen, handler, forward)

    road.faults["complete_multipart_upload"] = [overtaken]
    with pytest.raises(StoreError, match="ended by somebody else"), store.writer("b") as f:
        f.write(net.some(20 * MIB))
    assert store.get("b") == net.some(20 * MIB, 6)


@pytest.mark.parametrize("fault", [net.refused(503, "SlowDown"), net.cut], ids=["503", "reset"])
@pytest.mark.parametrize("operation", ["upload_part", "upload_part_copy", "complete_multipart_upload", "get_object"])
def test_what_fails_for_good_is_an_error_with_nothing_left_behind(store, road, operation, fault):
    sources, _ = net.put_all(store, [18 * MIB, 4])
    store.replace("out.tif", b"old")
    road.rules[operation] = fault
    # On a busy machine the double can be too slow for a second's patience before it comes to the fault.
    with pytest.raises(StoreError, match=f"{operation} failed for 1 s|ReadTimeoutError") as error:
        net.impatient(store).join("out.tif", b"h", sources, "work/join")
    assert error.value.kind == "busy"
    if operation in ("upload_part", "complete_multipart_upload"):
        with pytest.raises(StoreError, match="failed for 1 s"), net.impatient(store).writer("out.tif") as f:
            f.write(net.some(20 * MIB))
    road.rules.clear()
    assert store.get("out.tif") == b"old"


def test_a_store_that_never_answers_is_given_up_at_the_deadline(store, road):
    road.rules["put_object"] = net.hung
    with pytest.raises(StoreError, match="put_object failed for 1 s, at last with ReadTimeoutError"):
        net.impatient(store).replace("a", b"1")
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
    sources, _ = net.put_all(store, [18 * MIB, 4])
    said = []
    for operation, fault in itertools.product(("upload_part_copy", "upload_part"), (net.cut, BURST[1])):
        road.rules = {operation: fault}
        with pytest.raises(StoreError) as error:
            net.impatient(store).join("out.tif", b"h", sources, "work/join")
        said += [str(error.value), repr(error.value)]
        assert error.value.__cause__ is None
        assert error.value.__context__ is None or error.value.__suppress_context__
    logs = [r.getMessage() for r in caplog.records if r.name != "werkzeug"]  # that is moto's own
    said += [repr(store), store.url, pickle.dumps(store).decode("latin1"), *logs]
    for text, secret in itertools.product(
        said, (net.KEY, net.SECRET, net.TOKEN, "uploadId", "Signature", "SECRETUSER")
    ):
        assert secret not in text


def test_a_store_without_checksums_of_whole_uploads_is_written_to_all_the_same(store, road):
    road.faults["create_multipart_upload"] = [net.refused(501, "NotImplemented")]
    with store.writer("a") as f:
        f.write(net.some(20 * MIB))
    assert store.get("a") == net.some(20 * MIB)
    assert all("x-amz-checksum-crc32c" not in r.headers for r in road.did("upload_part"))
