"""The offset rule of every source: provider, bucket, flag and baseline, one row each of what the facts say."""

import itertools

import pytest
from stac_items import optical, scene

from model.profile import CDSE_L2A, ES_C1, ES_L2A, PC_L2A
from transforms.catalogs.earth_search_l2a import FLAG
from transforms.catalogs.registry import BY_NAME

BASELINES = ("00.01", "02.06", "02.14", "03.01", "04.00", "05.00", "05.09", "05.11")
BUCKETS = {
    "sentinel-cogs": "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/33/T/WL/2024/5",
    "raw": "s3://sentinel-s2-l2a/tiles/33/T/WL/2024/5/6/0",
    "raw over https": "https://sentinel-s2-l2a.s3.eu-central-1.amazonaws.com/tiles/33/T/WL/2024/5/6/0",
    "raw, path style": "https://s3.eu-central-1.amazonaws.com/sentinel-s2-l2a/tiles/33/T/WL/2024/5/6/0",
    "c1": "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/sentinel-2-c1-l2a/33/T/WL/2024/5",
    "a mirror": ".",
}


def in_bucket(item, base, keys=None):
    for key, asset in item["assets"].items():
        if keys is None or key in keys:
            asset["href"] = f"{base}/{key}.tif"
    return item


def truth(source, bucket, flag, baseline):
    """DN to subtract, None where nobody can know: facts/sources-and-cogs.md 1.3, facts/tessera.md 1.1."""
    new = 1000 if baseline >= "04.00" else 0
    if source in (PC_L2A, CDSE_L2A):
        return new  # by baseline, whatever the date or any flag
    if source == ES_C1:
        return 1000  # what its raster:bands declare
    if bucket.startswith("raw"):
        return new
    if flag is None:
        return 0 if new == 0 else None
    return 0 if flag else new


ROWS = [
    *itertools.product((PC_L2A, CDSE_L2A, ES_C1), ("a mirror", "c1"), (True, False, None), BASELINES),
    *itertools.product((ES_L2A,), BUCKETS, (True, False, None), BASELINES),
]


@pytest.mark.parametrize(("source", "bucket", "flag", "baseline"), ROWS)
def test_the_offset_is_that_of_provider_bucket_flag_and_baseline_whatever_the_day(source, bucket, flag, baseline):
    # Traps T7 (by baseline, not by date) and T9 (mixed buckets behind one flag).
    table, meant = BY_NAME[source], truth(source, bucket, flag, baseline)
    for day in ("2016-05-06", "2022-01-25", "2024-05-06"):
        said = {"datetime": f"{day}T10:00:00Z", table.baseline: baseline, FLAG: flag}
        got = scene(in_bucket(optical(source, **said), BUCKETS[bucket]), provider=table.provider)
        assert (got.source, got.baseline) == (source, baseline)
        assert (got.offset_dn, got.kept) == (meant or 0, meant is not None)
        assert got.offset_reason


def test_an_item_with_bands_in_both_buckets_has_no_single_offset():
    said = {FLAG: True, "s2:processing_baseline": "04.00"}
    item = in_bucket(optical(ES_L2A, **said), BUCKETS["raw"], keys={"red"})
    assert "some bands lie in sentinel-s2-l2a" in scene(item).dropped_reason
    item["properties"]["s2:processing_baseline"] = "03.01"
    assert scene(item).kept  # neither bucket has anything to subtract
    item = in_bucket(optical(ES_L2A, **said), BUCKETS["raw"], keys={"scl"})
    assert scene(item).kept  # scene classes have no offset


@pytest.mark.parametrize(
    ("said", "baseline", "dn"),
    [
        ("05.09", "05.09", 1000),
        (5.09, "05.09", 1000),
        (5.1, "05.10", 1000),  # a JSON number has lost its zero
        ("5.1", "05.10", 1000),
        (4, "04.00", 1000),
        (2.14, "02.14", 0),
        ("0510", "05.10", 1000),
        ("N0204", "02.04", 0),
        ("N05.00", "05.00", 1000),
        (True, "", None),
        ("five", "", None),
        ([5, 1], "", None),
        (None, "", None),
    ],
)
def test_a_baseline_is_read_in_every_form_in_which_it_is_written(said, baseline, dn):
    got = scene(optical(PC_L2A, **{"s2:processing_baseline": said}))
    assert (got.baseline, got.offset_dn, got.kept) == (baseline, dn or 0, dn is not None)


@pytest.mark.parametrize(
    ("id", "uri", "baseline"),
    [
        ("S2A_MSIL2A_20240506T100031_N0510_R122_T33TWL_20240506T160000", None, "05.10"),
        ("x", "S2A_MSIL2A_20240506T100031_N0301_R122_T33TWL_20240506T160000.SAFE", "03.01"),
        ("S2A_MSIL2A_20240506T100031_R122_T33TWL_20240506T160000", None, ""),
    ],
)
def test_without_its_property_the_baseline_is_that_of_the_products_name(id, uri, baseline):
    assert scene(optical(PC_L2A, id=id, **{"s2:processing_baseline": None, "s2:product_uri": uri})).baseline == baseline


def test_a_property_and_a_name_that_differ_in_whether_there_is_an_offset_drop_the_scene():
    uri = "S2A_MSIL2A_20240506T100031_N0301_R122_T33TWL_20240506T160000.SAFE"
    got = scene(optical(PC_L2A, **{"s2:processing_baseline": "05.10", "s2:product_uri": uri}))
    assert not got.kept
    assert "two that differ" in got.dropped_reason
    assert scene(optical(PC_L2A, **{"s2:processing_baseline": "02.14", "s2:product_uri": uri})).baseline == "02.14"
