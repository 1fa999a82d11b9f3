import dataclasses
import hashlib
import itertools
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms import plans
from transforms.grid import Block, blocks_of
from transforms.plans import BlockTask, Plan, desk_of, digest_of, revision_of, tasks_of
from transforms.regions import clip_of, region_from_geojson

PLAN = Plan(
    run="20260101T000000-abcdef",
    out="/out",
    period="2024",
    model_name="v2",
    model_sha256="a" * 64,
    inventory="b" * 64,
    product="c" * 64,
    tiles="",
    region="",
    block_px=2048,
    micro_batch_px=256,
    provider="CPUExecutionProvider",
    threads=2,
    readers=16,
    memory_bytes=8 << 30,
    max_failures=0,
    force=False,
    preview="a" * 16,
    version="0.1.0",
)
TASK = BlockTask(Block("33TWL", 0, 2048, 2048, 2048), "d" * 64, "")
# A triangle over the corner of four blocks of 2048 px, of a few pixels in the fourth.
CORNER = {
    "type": "Polygon",
    "coordinates": [[[15.255, 45.885], [15.29, 45.835], [15.235, 45.835], [15.255, 45.885]]],
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=5), st.randoms(use_true_random=False))
def test_a_digest_does_not_depend_on_the_order_of_keys(record, random):
    keys = list(record)
    random.shuffle(keys)
    assert digest_of({k: record[k] for k in keys}) == digest_of(record)


@given(st.dictionaries(st.text(max_size=3), st.integers(), min_size=1, max_size=5), st.data())
def test_one_other_value_or_name_is_another_digest(record, data):
    key = data.draw(st.sampled_from(sorted(record)))
    other = record | {key: record[key] + data.draw(st.integers(1, 9))}
    renamed = {k: v for k, v in record.items() if k != key} | {key + "longer": record[key]}
    assert len({digest_of(r) for r in (record, other, renamed)}) == 3


def test_a_revision_tells_product_tile_period_scenes_clip_and_pixel_version_apart(monkeypatch):
    args = ("product", "33TWL", "2024", "scenes", "clip")
    others = [revision_of(*args[:k], args[k] + "x", *args[k + 1 :]) for k in range(5)]
    swapped = [revision_of(*p) for p in itertools.permutations(args)]
    assert len({*others, *swapped}) == 5 + 120  # nothing runs into its neighbour
    before = revision_of(*args)
    assert before == swapped[0]
    monkeypatch.setattr(plans, "PIXEL_VERSION", plans.PIXEL_VERSION + 1)
    assert revision_of(*args) != before


def test_a_revision_is_the_same_in_every_release_that_leaves_pixel_version_alone():
    # The digest stands in published names: this record's form is fixed.
    record = '{"clip": "", "period": "2024", "pixel_version": 1, "product": "p", "scenes": "s", "tile": "33TWL"}'
    assert revision_of("p", "33TWL", "2024", "s", "") == hashlib.sha256(record.encode()).hexdigest()


@pytest.mark.parametrize(
    ("field", "moves"),
    [("block_px", True), ("micro_batch_px", True), ("provider", True), ("preview", True)]
    + [(f, False) for f in ("run", "out", "threads", "readers", "memory_bytes", "max_failures", "force", "version")],
)
def test_unfinished_blocks_are_shared_by_runs_that_make_them_alike_and_by_no_others(field, moves):
    value = getattr(PLAN, field)
    other = dataclasses.replace(PLAN, **{field: value + ("x" if isinstance(value, str) else 1)})
    assert (desk_of(other, TASK) != desk_of(PLAN, TASK)) == moves


def test_a_desk_lies_under_period_tile_and_revision():
    folder = desk_of(PLAN, TASK).folder
    assert folder.startswith("_work/2024/33TWL/dddddddd/")
    assert len(folder.rpartition("/")[2]) == 8
    assert desk_of(PLAN, dataclasses.replace(TASK, revision="e" * 64)).folder != folder


@pytest.mark.parametrize("block_px", [2048, 256, 10752])
def test_without_a_clip_every_block_of_the_tile_is_a_task(block_px):
    tasks = tasks_of("33TWL", "r", None, block_px)
    assert [t.block for t in tasks] == list(blocks_of("33TWL", block_px))
    assert {(t.revision, t.clip) for t in tasks} == {("r", "")}


@pytest.mark.parametrize("block_px", [2048, 1024])
def test_with_a_clip_the_tasks_are_the_blocks_that_hold_a_wanted_pixel(block_px):
    clip = clip_of(region_from_geojson(CORNER), "33TWL")
    wanted = [
        b for b in blocks_of("33TWL", block_px) if clip.mask("33TWL", b.row_px, b.col_px, b.height_px, b.width_px).any()
    ]
    assert 1 < len(wanted) < 36
    tasks = tasks_of("33TWL", "r", clip, block_px)
    assert [t.block for t in tasks] == wanted
    assert {t.clip for t in tasks} == {clip.digest}


def test_a_task_is_a_descriptor_of_a_few_hundred_bytes():
    # Design, section 2: all shuffles carry only such records.
    data = pickle.dumps(TASK)
    assert pickle.loads(data) == TASK
    assert len(data) < 500


def test_a_plan_travels_whole_and_is_written_as_json():
    assert pickle.loads(pickle.dumps(PLAN)) == PLAN
    assert Plan(**json.loads(PLAN.to_json())) == PLAN
