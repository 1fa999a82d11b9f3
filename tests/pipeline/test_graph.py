"""The graph itself: what travels, how often, and how large the job's request is."""

import dataclasses
import importlib
import json
import random

import apache_beam as beam
import pytest
from apache_beam.coders import Coder, registry
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.runners.portability.fn_api_runner import translations
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from pipeline.graph import EmbedTiles, tiles_of
from pipeline.planning import EmbedOptions, make_plan
from transforms.grid import TILE_PX, Block
from transforms.land import land_tiles
from transforms.plans import BlockTask, digest_of
from transforms.regions import region_from_bbox
from transforms.steps import BlockTaskCoder1, OneTask
from transforms.storage import open_store

FEW_BYTES = 100  # a descriptor; the design allows a few hundred
PLANET_TILES = 18_400
GRAPH_BYTES, REQUEST_BYTES = (
    10_000_000,
    20_000_000,
)  # limits of Dataflow for a graph and for a request (facts, beam 3.2)
GROUP, COMBINE = "beam:transform:group_by_key:v1", "beam:transform:combine_per_key:v1"


@pytest.fixture(scope="module")
def plan(world, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("graph") / "out")
    return make_plan(world.inv, world.model, out, EmbedOptions(region=region_from_bbox(world.bbox)))[0]


def proto_of(plan, **how):
    pipeline = beam.Pipeline(options=PipelineOptions([]))
    _ = pipeline | EmbedTiles(plan, **how)
    return pipeline.to_runner_api()


@pytest.fixture(scope="module")
def proto(plan):
    return proto_of(plan)


def shuffles(proto):
    """(place in our graph, transform) of every grouping and combining."""
    found = [t for t in proto.components.transforms.values() if t.spec.urn in (GROUP, COMBINE)]
    inner = {name for t in found for name in t.subtransforms}
    named = {i: t for i, t in proto.components.transforms.items() if t in found and i not in inner}
    return sorted(((t.unique_name.split("/")[1], t) for t in named.values()), key=lambda pair: pair[0])


def coder_of(proto, pcollection):
    """The Python coder of a PCollection."""
    context = PipelineContext(proto.components)
    return context.coders.get_by_id(proto.components.pcollections[pcollection].coder_id)


def test_four_shuffles_in_all_and_none_between_reading_and_writing(proto):
    assert [place for place, _ in shuffles(proto)] == ["ByTile", "CountTiles", "SpreadBlocks", "SpreadTiles"]
    embed = [t for t in proto.components.transforms.values() if t.unique_name.endswith("EmbedBlock")]
    assert len(embed) == 1, "reading, encoding and writing are one step"


def test_without_spreading_a_tiles_blocks_are_made_where_it_is_planned(plan):
    proto = proto_of(plan, spread_blocks=False)
    assert [place for place, _ in shuffles(proto)] == ["ByTile", "CountTiles", "SpreadTiles"]
    assert {"PlanTiles", "EmbedBlock"} <= set(stage_of(proto, "EmbedBlock"))


def stage_of(proto, step):
    """The steps of ours that Beam's own fuser puts into one stage with `step`."""
    _, stages = FnApiRunner().create_stages(beam_runner_api_pb2.Pipeline.FromString(proto.SerializeToString()))
    assert all(isinstance(stage, translations.Stage) for stage in stages)
    fused = [[t.unique_name for t in stage.transforms] for stage in stages]
    (found,) = [names for names in fused if any(n.endswith(f"/{step}") for n in names)]
    return [n.partition("/")[2] for n in found]


def test_embedding_and_publishing_are_fused_up_to_the_combining_of_what_is_left_to_sweep(proto):
    """What publishes a tile stands before the last two shuffles, hence before the last block of the run has ended."""
    steps = stage_of(proto, "EmbedBlock")
    assert "EmbedBlock" in steps and not {"SweepTile", "FinishRun"} & set(steps)
    assert any(step.startswith("ByTile") and "Precombine" in step for step in steps), (
        "a tile leaves a bundle as one task"
    )


def task_of(revision="f" * 64, clip="e" * 64):
    return BlockTask(Block("33TWL", 10240, 10240, 740, 740), revision, clip)


def test_what_is_shuffled_is_a_few_bytes(proto):
    samples = {
        "SpreadTiles": (1 << 31, ("33TWL",)),
        "SpreadBlocks": (1 << 31, (task_of(),)),
        "ByTile": ("33TWL", task_of()),
        "CountTiles": (None, 18_400),
    }
    for place, _ in shuffles(proto):
        key, value = samples[place]
        parts = [key, *(value if isinstance(value, tuple) else [value])]
        assert sum(len(registry.get_coder(type(p)).encode(p)) for p in parts) < FEW_BYTES, place


DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
SIDES = st.integers(0, TILE_PX)
TASKS = st.builds(
    BlockTask,
    st.builds(Block, st.sampled_from(["01CCV", "33TWL", "60XVQ"]), SIDES, SIDES, SIDES, SIDES),
    DIGESTS,
    st.one_of(st.just(""), DIGESTS),
)


@given(TASKS)
def test_a_task_is_the_same_behind_a_shuffle_and_equal_tasks_are_equal_bytes(task):
    coder = registry.get_coder(BlockTask)
    data = coder.encode(task)
    assert coder.decode(data) == task and len(data) == coder.estimate_size(task)
    assert data == coder.encode(dataclasses.replace(task, block=dataclasses.replace(task.block)))


@pytest.mark.parametrize(
    "task",
    [
        task_of(revision="f" * 62),
        task_of(clip="e" * 32),
        task_of(clip="e" * 128),
        dataclasses.replace(task_of(), block=Block("33TWLX", 0, 0, 256, 256)),
    ],
)
def test_a_task_whose_names_would_be_cut_is_refused(task):
    with pytest.raises(ValueError, match="a tile's name has 5 letters, a digest 64 digits"):
        BlockTaskCoder1().encode(task)


@given(st.lists(st.integers(0, 35), min_size=1, max_size=36, unique=True), st.integers(1, 5), st.randoms())
def test_a_sweep_is_given_the_same_task_however_a_tiles_blocks_were_bundled(numbers, bundles, rng):
    tasks = [BlockTask(Block("33TWL", 2048 * (n // 6), 2048 * (n % 6), 740, 740), "f" * 64, "") for n in numbers]
    combine, parts = OneTask(), [[] for _ in range(bundles)]
    for task in tasks:
        rng.choice(parts).append(task)
    accumulators = []
    for part in parts:
        accumulator = combine.create_accumulator()
        for task in part:
            accumulator = combine.add_input(accumulator, task)
        accumulators.append(accumulator)
    rng.shuffle(accumulators)
    assert combine.extract_output(combine.merge_accumulators(accumulators)) == min(tasks)


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
    assert abs(sizes[1] - sizes[0]) < 200  # digests and names of runs
    assert len(proto.SerializeToString()) < 200_000


def test_the_graph_has_one_environment_and_no_resource_hint(proto):
    """A hint on one step would break the fusion around it (facts, beam 1.6)."""
    assert len(proto.components.environments) == 1
    assert not next(iter(proto.components.environments.values())).resource_hints


def test_a_planets_request_is_far_under_the_services_limits(plan):
    """Its tiles lie on the store, by digest; the graph is the same as that of one tile."""
    tiles = random.Random(3).sample(land_tiles(), PLANET_TILES)
    whole = dataclasses.replace(plan, tiles=digest_of(tiles))
    open_store(plan.out).replace(f"_inputs/{whole.tiles}.tiles.json", json.dumps(tiles).encode())
    assert list(tiles_of(whole)) == tiles
    proto = proto_of(whole)
    assert len(proto.SerializeToString()) < GRAPH_BYTES / 50
    assert len(json_format.MessageToJson(proto)) < REQUEST_BYTES / 50


def coders_of(proto):
    context = PipelineContext(proto.components)
    return [context.coders.get_by_id(i) for i in proto.components.coders]


def test_element_types_live_in_modules_that_workers_can_import(proto):
    for kind in (Block, BlockTask):
        assert kind.__module__.startswith("transforms.")
    for coder in coders_of(proto):
        module = type(coder).__module__
        assert module.partition(".")[0] in ("apache_beam", "transforms")
        assert getattr(importlib.import_module(module), type(coder).__name__) is type(coder)


def test_blocks_travel_in_our_own_coder_and_nothing_that_is_shuffled_by_name_is_pickled(proto):
    """Pickled a task is five times as large: 662,400 of them lie in the memory of an engine."""
    for place in ("SpreadBlocks", "ByTile"):
        (shuffle,) = [t for found, t in shuffles(proto) if found == place]
        (found,) = shuffle.inputs.values()
        assert "BlockTaskCoder1" in repr_of(coder_of(proto, found)), place
    (by_tile,) = [t for found, t in shuffles(proto) if found == "ByTile"]
    accumulator = beam_runner_api_pb2.CombinePayload.FromString(by_tile.spec.payload).accumulator_coder_id
    assert isinstance(PipelineContext(proto.components).coders.get_by_id(accumulator), BlockTaskCoder1)


def repr_of(coder: Coder) -> str:
    """The names of a coder and of its components."""
    return " ".join([type(coder).__name__, *map(repr_of, coder._get_component_coders())])


def test_keys_have_a_deterministic_coder(proto):
    """A key that is pickled may come out as two keys."""
    for place, shuffle in shuffles(proto):
        (found,) = shuffle.inputs.values()
        coder = coder_of(proto, found)
        if place != "CountTiles":  # one key in all, None
            assert type(coder.key_coder()).__name__ in ("StrUtf8Coder", "VarIntCoder"), place
        assert coder.key_coder().is_deterministic() or place == "CountTiles"
