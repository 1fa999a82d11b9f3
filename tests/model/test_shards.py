import dataclasses
import hashlib
import itertools
import json
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import shards as shards_module
from model.errors import BadInput
from model.records import from_bytes, regrouped, to_bytes
from model.shards import Records, ShardSet, chosen, joined, open_shards, write_set, write_shard

SENSORS = {"s2": ("s2", "s2_valid", "s2_doy"), "s1": ("s1", "s1_valid", "s1_orbit", "s1_doy")}


def made(n, seed=0, most=7):
    """n records whose every number is drawn."""
    rng = np.random.default_rng(seed)
    s2, s1 = (np.concatenate([[0], np.cumsum(rng.integers(0, most + 1, n))]).astype(np.int64) for _ in range(2))
    a, b = int(s2[-1]), int(s1[-1])
    return Records(
        tile=rng.choice(np.array([b"33TWL", b"01CCV", b""], "S5"), n),
        row_px=rng.integers(-1, 10_980, n).astype(np.int32),
        col_px=rng.integers(-1, 10_980, n).astype(np.int32),
        lon=np.where(rng.random(n) < 0.2, np.nan, rng.uniform(-180, 180, n)),
        lat=rng.uniform(-90, 90, n),
        land=rng.random(n).astype(np.float32),
        s2_offsets=s2,
        s1_offsets=s1,
        s2=rng.integers(0, 2**16, (a, 10)).astype(np.uint16),
        s2_valid=rng.random(a) < 0.5,
        s2_doy=rng.integers(1, 367, a).astype(np.int16),
        s1=rng.integers(-(2**15), 2**15, (b, 2)).astype(np.int16),
        s1_valid=rng.random(b) < 0.5,
        s1_orbit=rng.integers(0, 2, b).astype(np.uint8),
        s1_doy=rng.integers(1, 367, b).astype(np.int16),
    )


def same(a, b):
    for field in dataclasses.fields(Records):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert x.dtype == y.dtype, field.name
        np.testing.assert_array_equal(x, y, err_msg=field.name)


def a_set(folder, records, shard_records=10, **more):
    return write_set(
        folder,
        [records],
        profile_name="v2",
        period="2024",
        origin={"set": "drawn"},
        shard_records=shard_records,
        **more,
    )


@pytest.fixture
def folder(tmp_path):
    a_set(tmp_path / "s", made(25))
    return tmp_path / "s"


def padded(records, index):
    """A batch, pixel by pixel."""
    out = {}
    for sensor, names in SENSORS.items():
        offsets = getattr(records, f"{sensor}_offsets")
        longest = max((int(offsets[i + 1] - offsets[i]) for i in index), default=0)
        for name in names:
            column = getattr(records, name)
            into = np.zeros((len(index), longest, *column.shape[1:]), column.dtype)
            for k, i in enumerate(index):
                steps = column[offsets[i] : offsets[i + 1]]
                into[k, : len(steps)] = steps
            out[name] = into
    return out


@given(n=st.integers(1, 30), size=st.integers(1, 12), seed=st.integers(0, 99), data=st.data())
def test_a_batch_is_what_a_loop_over_its_records_gives(tmp_path_factory, n, size, seed, data):
    records = made(n, seed)
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), np.int64)
    found = a_set(tmp_path_factory.mktemp("set") / "s", records, size)
    batch = found.take(index)
    for name, column in padded(records, index).items():
        assert getattr(batch, name).dtype == column.dtype
        np.testing.assert_array_equal(getattr(batch, name), column, err_msg=name)
    assert batch.index.tolist() == index.tolist() and len(batch) == len(index)
    same(found.records(index), chosen(records, index))


@given(n=st.integers(0, 40), cuts=st.lists(st.integers(0, 40), max_size=5), size=st.integers(1, 50))
def test_regrouping_keeps_every_record_in_its_order_and_all_pieces_but_the_last_are_full(n, cuts, size):
    records = made(n, seed=n)
    places = [0, *sorted(min(c, n) for c in cuts), n]
    pieces = list(regrouped((chosen(records, slice(a, b)) for a, b in itertools.pairwise(places)), size))
    assert [len(p) for p in pieces] == [size] * (n // size) + ([n % size] if n % size else [])
    same(joined(pieces), records)


@given(n=st.integers(0, 20), seed=st.integers(0, 99))
def test_records_come_back_the_same_from_bytes(n, seed):
    records = made(n, seed)
    same(from_bytes(to_bytes(records)), records)
    assert to_bytes(from_bytes(to_bytes(records))) == to_bytes(records)


def test_a_set_tells_what_it_is_and_its_files_hold_what_the_manifest_says(folder):
    manifest = open_shards(folder, check=True).manifest
    assert (manifest.profile, manifest.period, manifest.records, manifest.origin) == (
        "v2",
        "2024",
        25,
        {"set": "drawn"},
    )
    assert [s.records for s in manifest.shards] == [10, 10, 5]
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        *(f"shard-0000{n}-of-00003.bin" for n in range(3)),
    ]
    for shard in manifest.shards:
        data = (folder / shard.name).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_same_records_give_the_same_bytes(tmp_path):
    first, second = (write_shard(tmp_path / name, made(9, seed=4)) for name in "ab")
    assert first["sha256"] == second["sha256"]
    assert write_shard(tmp_path / "c", made(9, seed=5))["sha256"] != first["sha256"]


def test_columns_begin_at_multiples_of_64_bytes(folder):
    header = shards_module.read_header(folder / "shard-00000-of-00003.bin")
    assert {at % 64 for _, at in header.columns.values()} == {0}


def test_a_shard_that_ends_early_is_refused_by_name_with_the_cure(folder):
    path = folder / "shard-00001-of-00003.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"shard-00001-of-00003.bin: .*ends early; copy the set again"):
        open_shards(folder)


def test_a_longer_shard_is_refused(folder):
    path = folder / "shard-00001-of-00003.bin"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BadInput, match=r"shard-00001-of-00003.bin: .*something was added"):
        open_shards(folder)


def test_a_whole_shard_of_another_set_is_refused(folder, tmp_path):
    write_shard(folder / "shard-00001-of-00003.bin", made(10, seed=8))
    with pytest.raises(BadInput, match=r"shard-00001-of-00003.bin: \d+ bytes, the manifest says"):
        open_shards(folder)


def test_a_shard_of_as_many_bytes_and_other_records_is_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][2]["records"] = 6
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=r"shard-00002-of-00003.bin: 5 records, the manifest says 6"):
        open_shards(folder)


def test_a_missing_shard_is_refused_by_name(folder):
    (folder / "shard-00002-of-00003.bin").unlink()
    with pytest.raises(BadInput, match=r"shard-00002-of-00003.bin: cannot be read"):
        open_shards(folder)


def test_a_changed_byte_is_found_by_the_checksum_and_by_nothing_else(folder):
    path = folder / "shard-00002-of-00003.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    open_shards(folder)
    with pytest.raises(BadInput, match=r"shard-00002-of-00003.bin: its sha256"):
        open_shards(folder, check=True)


def test_another_magic_or_a_newer_version_is_refused(folder):
    path = folder / "shard-00000-of-00003.bin"
    data = path.read_bytes()
    path.write_bytes(b"PK" + data[2:])
    with pytest.raises(BadInput, match=r"shard-00000-of-00003.bin: not a shard"):
        open_shards(folder)
    path.write_bytes(data[:8] + struct.pack("<I", 2) + data[12:])
    with pytest.raises(BadInput, match="version 2, this release reads 1; use a newer"):
        open_shards(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["columns"]["s1"].update(offset=1 << 40), "column s1 ends at byte .* outside the file"),
        (lambda t: t["columns"]["s1"].update(shape=[1 << 40]), "column s1 ends at byte .* outside the file"),
        (lambda t: t["columns"]["s2"].update(offset=-64), "column s2 .* outside the file"),
        (lambda t: t["columns"]["lon"].update(shape=[3]), "column lon is"),
        (lambda t: t["columns"]["land"].update(dtype="<f8"), "column land is"),
        (lambda t: t["columns"].pop("tile"), "no column tile"),
        (lambda t: t.pop("records"), "table of columns cannot be read"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_its_file_is_refused(folder, change, words):
    path = folder / "shard-00000-of-00003.bin"
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    table = json.loads(data[24 : 24 + length])
    change(table)
    text = json.dumps(table).encode()
    start = -(-(24 + length) // 64) * 64
    again = (data[:12] + struct.pack("<IQ", len(text), 0) + text).ljust(-(-(24 + len(text)) // 64) * 64, b"\0")
    again += data[start:]
    path.write_bytes(again[:16] + struct.pack("<Q", len(again)) + again[24:])
    with pytest.raises(BadInput, match=rf"shard-00000-of-00003.bin: .*{words}.*copy the set again"):
        open_shards(folder)


def test_offsets_that_lead_out_of_a_shard_are_refused_when_they_are_met(folder):
    path = folder / "shard-00000-of-00003.bin"
    data = bytearray(path.read_bytes())
    _, at = shards_module.read_header(path).columns["offsets"]
    struct.pack_into("<q", data, at + 5 * 16, 1 << 40)
    path.write_bytes(data)
    opened = open_shards(folder)
    assert len(opened.take(np.array([1, 24]))) == 2
    with pytest.raises(BadInput, match=r"shard-00000-of-00003.bin: damaged"):
        opened.take(np.array([4]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not the manifest"),
        ('{"format": "tessera-beam/shards", "version": 2}', "version 2, this release reads 1; use a newer"),
        ('{"format": "tessera-beam/shards", "version": 1}', "fields"),
    ],
)
def test_another_manifest_is_refused(folder, text, words):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BadInput, match=f"manifest.json: .*{words}"):
        open_shards(folder)


def test_a_manifest_cannot_name_files_elsewhere(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace("shard-00000-of", "../shard-00000-of"))
    with pytest.raises(BadInput, match="does not lie beside it"):
        open_shards(folder)


def test_a_folder_without_a_set_and_a_bucket_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(BadInput, match="train shards"):
        open_shards(tmp_path)
    with pytest.raises(BadInput, match="copy the folder"):
        open_shards("gs://bucket/set")


def test_a_set_is_never_written_over_another_and_never_empty(folder, tmp_path):
    with pytest.raises(BadInput, match="there already"):
        a_set(folder, made(3))
    with pytest.raises(BadInput, match="no records"):
        a_set(tmp_path / "none", made(0))


@pytest.mark.parametrize("index", [[-1], [25], [0, 99]])
def test_a_number_that_no_record_has_is_an_index_error(folder, index):
    with pytest.raises(IndexError, match="of 25"):
        open_shards(folder).take(np.array(index))


def test_numbers_of_records_are_whole(folder):
    with pytest.raises(IndexError, match="whole numbers"):
        open_shards(folder).take(np.array([0.5]))


def test_fewer_maps_than_shards_give_the_same_records(folder, monkeypatch):
    monkeypatch.setattr(shards_module, "_most_maps", lambda: 1)
    opened = open_shards(folder)
    index = np.arange(25)[::-1]
    same(opened.records(index), chosen(made(25), index))
    assert len(opened._maps) == 1


def test_a_set_travels_to_another_process_and_is_shared_by_threads(folder):
    again = pickle.loads(pickle.dumps(open_shards(folder)))
    assert isinstance(again, ShardSet)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda s: again.records(np.random.default_rng(s).permutation(25)), range(20)))
    for seed, records in enumerate(found):
        same(records, chosen(made(25), np.random.default_rng(seed).permutation(25)))


def test_columns_of_another_type_or_length_make_no_records():
    whole = made(5)
    with pytest.raises(ValueError, match=r"lon: float32"):
        dataclasses.replace(whole, lon=whole.lon.astype(np.float32))
    with pytest.raises(ValueError, match="s2_doy"):
        dataclasses.replace(whole, s2_doy=whole.s2_doy[:-1])
    with pytest.raises(ValueError, match="s1_offsets"):
        dataclasses.replace(whole, s1_offsets=whole.s1_offsets[::-1].copy())
