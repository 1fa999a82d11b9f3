"""The graph itself: what travels, how often, and how large the job's request is."""

import apache_beam as beam
import pytest
from apache_beam.coders import registry
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.embed import EmbedOptions, make_plan
from pipeline.graph import EmbedTiles, tiles_of
from transforms.grid import Block
from transforms.plans import BlockTask
from transforms.regions import region_from_bbox

FEW_HUNDRED_BYTES = 400  # design, section 2: an element is a descriptor of a few hundred bytes


@pytest.fixture(scope="module")
def plan(world, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("graph") / "out")
    return make_plan(world.inv, world.model, out, EmbedOptions(region=region_from_bbox(world.bbox)))[0]


def proto_of(plan):
    pipeline = beam.Pipeline(options=PipelineOptions([]))
    _ = pipeline | EmbedTiles(plan)
    return pipeline.to_runner_api()


@pytest.fixture(scope="module")
def proto(plan):
    return proto_of(plan)


def test_four_shuffles_in_all_and_none_between_reading_and_writing(proto):
    names = [
        t.unique_name
        for t in proto.components.transforms.values()
        if t.spec.urn in ("beam:transform:group_by_key:v1", "beam:transform:combine_per_key:v1")
        and not any(s in proto.components.transforms and "GroupByKey" in s for s in t.subtransforms)
    ]
    places = sorted({n.split("/")[1] for n in names})
    assert places == ["ByTile", "CountTiles", "SpreadBlocks", "SpreadTiles"]
    embed = [t for t in proto.components.transforms.values() if t.unique_name.endswith("EmbedBlock")]
    assert len(embed) == 1, "reading, encoding and writing are one step"


def test_what_is_shuffled_is_a_few_hundred_bytes():
    task = BlockTask(Block("33TWL", 10240, 10240, 740, 740), "f" * 64, "e" * 64)
    for element in ("33TWL", task, ("33TWL", ("done", task))):
        assert len(registry.get_coder(type(element)).encode(element)) < FEW_HUNDRED_BYTES


def test_no_element_type_can_hold_an_array(proto):
    payloads = b" ".join(c.spec.payload for c in proto.components.coders.values())
    assert b"ndarray" not in payloads and b"numpy" not in payloads


def test_the_request_does_not_grow_with_the_tiles(world, proto, tmp_path):
    """18,400 tiles are read from the store by the first step; the service's limit is 10 MB (facts, beam 3.2)."""
    sizes = []
    for count in (1, 2):  # fewer than all: all of an inventory are not listed
        tiles = tuple(world.earth.tiles[:count])
        options = EmbedOptions(region=region_from_bbox(world.bbox), tiles=tiles)
        plan, _, _ = make_plan(world.inv, world.model, str(tmp_path / str(count)), options)
        assert sorted(tiles_of(plan)) == sorted(tiles)
        sizes.append(len(proto_of(plan).SerializeToString()))
    assert abs(sizes[1] - sizes[0]) < 100  # digests and names of runs
    assert len(proto.SerializeToString()) < 200_000


def test_the_graph_has_one_environment_and_no_resource_hint(proto):
    """A hint on one step would break the fusion around it (facts, beam 1.6)."""
    assert len(proto.components.environments) == 1
    assert not next(iter(proto.components.environments.values())).resource_hints


def test_element_types_live_in_modules_that_workers_can_import():
    for kind in (Block, BlockTask):
        assert kind.__module__.startswith("transforms.")


def test_keys_have_a_deterministic_coder(proto):
    """A key that is pickled may come out as two keys."""
    parts = proto.components
    (by_tile,) = [t for t in parts.transforms.values() if t.unique_name.endswith("ByTile")]
    (found,) = by_tile.inputs.values()
    kv = parts.coders[parts.pcollections[found].coder_id]
    assert kv.spec.urn == "beam:coder:kv:v1"
    assert parts.coders[kv.component_coder_ids[0]].spec.urn == "beam:coder:string_utf8:v1"
