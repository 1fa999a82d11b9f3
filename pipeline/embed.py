"""The embed verb: checks everything that can be checked, fixes the plan, runs the graph, says what became of it."""

import dataclasses
import datetime as dt
import hashlib
import importlib.metadata
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import shapely

from model.errors import BadInput, WorkerLost
from model.modelfile import ModelFile, open_model
from model.profile import Profile
from pipeline.engines import Local, at_work, engine_of, lost_worker
from pipeline.graph import EmbedTiles
from pipeline.progress import Progress
from pipeline.reach import check_reach
from pipeline.record import record_of
from pipeline.room import check_room
from pipeline.words import memory as memory_words
from transforms import dpixels, inventory
from transforms.disk_store import LocalStore
from transforms.draws import Place
from transforms.embed import budget_of
from transforms.encode import MICRO_BATCH_PX, cores, device_kind, encode_window, provider_for, session_of
from transforms.grid import blocks_of
from transforms.inventory import Inventory
from transforms.memory import S1_BYTES, S2_NATIVE_BYTES, Budget
from transforms.objects import kept_file
from transforms.periods import period_of
from transforms.plans import Plan, digest_of, tasks_of
from transforms.preview import colours_of
from transforms.regions import Region, clip_of, tiles_of
from transforms.stac import item_path, product_record
from transforms.stac_collection import LICENCE_FORM
from transforms.storage import Store, open_store

LOST_IN_VAIN = 3  # times that workers may end in a row without a block more: two are what a block that kills needs
READERS = 16  # files read at once by a process (facts, sources-and-cogs 3.2: more only costs on small machines)


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """What a user may ask of `embed`.

    Attributes:
      tiles: names, () for all of the inventory. region: pixels wanted, None for whole tiles.
      device: auto, cpu or cuda. block_px: side of a block. memory_gib: what a worker may take.
      runner, workers: the engine. max_failures: 0 for no limit. force: redo what is published.
      overviews: published with them; tiles that are published keep what they have. licence: an SPDX identifier for the
        collection, "" to leave what stands there.
      beam_args: passed to Beam as they are.
    """

    tiles: tuple[str, ...] = ()
    region: Region | None = None
    device: str = "auto"
    block_px: int = 2048
    memory_gib: float = 8.0
    runner: str = "local"
    workers: int = 1
    max_failures: int = 0
    force: bool = False
    overviews: bool = False
    licence: str = ""
    readers: int = READERS
    beam_args: tuple[str, ...] = ()


def check_imagery(profile: Profile, whose: str, inv: Inventory) -> None:
    """Whether a profile's d-pixels can be made of an inventory; `whose` is what the message calls the profile.

    Raises:
      BadInput: a source that the weights were not made for, or a rule that this release does not follow.
    """
    faults = []
    if strange := sorted({s.name for s in inv.sources} - {*profile.s2_sources, *profile.s1_sources}):
        sources = ", ".join((*profile.s2_sources, *profile.s1_sources))
        faults.append(f"{inv.path} has scenes of {', '.join(strange)}; {whose} was made for {sources}")
    cure = "Build the inventory from these, or take the model that was trained on yours"
    if rules := dpixels.unbuildable(profile):
        faults.append(f"{whose} wants d-pixels that this release does not build: {'; '.join(rules)}")
        cure = "Take a model of another family, or make the d-pixels elsewhere and embed them with --dpixels DIR"
    if faults:
        raise BadInput(". ".join([*faults, cure]))


def check_sources(model: ModelFile, inv: Inventory) -> None:
    """The imagery against a model's profile.

    Raises:
      BadInput: as `check_imagery`, and a sensor that the inventory never searched.
    """
    profile = model.profile
    check_imagery(profile, f"profile {profile.name} of {model.name}", inv)
    there = [s.name for s in inv.sources]
    for sensor, names in dpixels.unsearched(profile, there).items():
        raise BadInput(
            f"{inv.path} has no {sensor} source (it has {', '.join(there) or 'none'}); profile {profile.name} of "
            f"{model.name} wants one of {', '.join(names)}: build the inventory again with a second --catalog"
        )


def check_tiles(inv: Inventory, tiles: Sequence[str]) -> None:
    missing = sorted(set(tiles) - set(inv.tiles))
    if missing:
        raise BadInput(
            f"tile {', '.join(missing[:5])} is not in {inv.path}, which has {', '.join(inv.tiles[:8])}"
            f"{' ..' if len(inv.tiles) > 8 else ''}: build an inventory with it"
        )


def check_product(store: Store, record: dict[str, Any]) -> None:
    """Claims an empty output folder for a product, or finds that it holds the same one.

    Raises:
      BadInput: it holds another product; the message says in what they differ.
    """
    data = json.dumps(record, sort_keys=True, indent=1).encode()
    foreign = store.names("") + [f for f in store.folders("") if f != "_inputs"]  # another run begins in this moment
    if foreign and store.stat("_inputs/product.json") is None:
        raise BadInput(
            f"{store.url} holds files that are not of tessera-beam ({', '.join(foreign[:3])}): choose another --out"
        )
    if store.put_if_absent("_inputs/product.json", data):
        return
    other = json.loads(store.get("_inputs/product.json"))
    if other != record:
        differ = sorted(k for k in {*other, *record} if other.get(k) != record.get(k))
        words = "; ".join(f"{k}: there {other.get(k)}, now {record.get(k)}" for k in differ)
        raise BadInput(f"{store.url} holds another product ({words}): choose another --out")


def software_version() -> str:
    return importlib.metadata.version("tessera-beam")


def region_digest(region: Region | None) -> str:
    """sha256 of a region's canonical GeoJSON, "" for none."""
    return hashlib.sha256(shapely.to_geojson(region.shape).encode()).hexdigest() if region else ""


def worst_tile(inv: Inventory, tiles: Sequence[str]) -> str:
    """The tile with most scenes: the one that a worker's memory must be enough for."""

    def weight(tile: str) -> tuple[float, str]:
        n = inv.counts[tile]
        return n.s2 * S2_NATIVE_BYTES + (n.s1_ascending + n.s1_descending) * S1_BYTES, tile

    return max(tiles, key=weight)


def make_plan(inv_path: str, model_path: str, out: str, options: EmbedOptions) -> tuple[Plan, Budget, list[str]]:
    """Checks the inputs, copies them content-addressed to `OUT/_inputs/`, and fixes the plan.

    Returns:
      The plan, the budget of its largest tile, and its tiles.

    Raises:
      BadInput: anything that can be known before work starts.
    """
    model = open_model(model_path)
    inv = inventory.read_header(inv_path)
    check_sources(model, inv)
    check_tiles(inv, options.tiles)
    list(blocks_of(inv.tiles[0], options.block_px))  # refuses a bad size
    engine_of(options.runner, options.workers)
    if not re.fullmatch(LICENCE_FORM, options.licence or "various"):
        raise BadInput(f"--licence {options.licence}: an SPDX identifier is wanted, for example CC-BY-4.0")
    if options.device == "auto" and options.runner != "local":
        raise BadInput(
            f"--device auto with --runner {options.runner}: say cpu or cuda, the workers are not this machine"
        )
    provider = provider_for(options.device, model)
    tiles = sorted(set(options.tiles) or set(inv.tiles))
    if options.region is not None:
        touched = set(tiles_of(options.region))
        tiles = [t for t in tiles if t in touched]
        if not tiles:
            raise BadInput(f"the region touches none of the tiles of {inv_path} ({', '.join(inv.tiles[:8])})")
        tiles = [t for t in tiles if tasks_of(t, "", clip_of(options.region, t), options.block_px)]
        if not tiles:
            raise BadInput("the region holds the centre of no 10 m pixel: make it larger")
    check_reach(inv, tiles)
    store = open_store(out)
    if isinstance(store, LocalStore) and Path(store.root).exists() and not Path(store.root).is_dir():
        raise BadInput(f"--out {out}: there is a file of that name")
    record = product_record(model.name, model.sha256, model.profile, inv.overlap)
    threads = max(1, cores() // options.workers)
    plan = Plan(
        run=f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{os.urandom(3).hex()}",
        out=store.url,
        period=inv.period.name,
        model_name=model.name,
        model_sha256=model.sha256,
        inventory=inv.digest,
        product=digest_of(record),
        tiles="" if tiles == list(inv.tiles) else digest_of(tiles),
        region=region_digest(options.region),
        block_px=options.block_px,
        micro_batch_px=MICRO_BATCH_PX[provider],
        provider=provider,
        threads=threads,
        readers=options.readers,
        memory_bytes=int(options.memory_gib * 2**30),
        max_failures=options.max_failures,
        force=options.force,
        preview="",
        version=software_version(),
        overlap=inv.overlap,
        overviews=options.overviews,
        licence=options.licence,
    )
    worst = inventory.read_tile(inv_path, worst_tile(inv, tiles))
    budget = budget_of(plan, model, worst)
    try:
        check_product(store, record)
        plan = _deposit(store, plan, model, Path(inv_path), tiles, options.region)
    except OSError as e:
        raise BadInput(f"--out {out}: it cannot be written to ({e.strerror})") from None
    return plan, budget, tiles


def room_for(store: Store, plan: Plan, tiles: Sequence[str], region: Region | None) -> list[str]:
    """What `check_room` says of the tiles that have no item yet; a bucket has room for all.

    Raises:
      BadInput: the disk has no room for one of them.
    """
    if not isinstance(store, LocalStore):
        return []
    names = {t: item_path(t, plan.period, plan.model_name) for t in tiles}
    product = json.loads(store.get("_inputs/product.json"))
    return check_room(
        Path(store.root), [t for t, n in names.items() if store.stat(n) is None], region, product["dimensions"]
    )


def _deposit(store: Store, plan: Plan, model: ModelFile, inv: Path, tiles: list[str], region: Region | None) -> Plan:
    """Puts what the workers need under `_inputs/`, under names that say what is in them."""
    store.put_if_absent(f"_inputs/{model.sha256}.onnx", model.path.read_bytes())
    kept = f"_inputs/{plan.inventory}.parquet"
    if not store.put_if_absent(kept, data := inv.read_bytes()) and store.get(kept) != data:
        store.replace(kept, data)  # the same scenes, but the catalogue lies elsewhere now
    if plan.tiles:
        store.put_if_absent(f"_inputs/{plan.tiles}.tiles.json", json.dumps(tiles).encode())
    if region is not None:
        store.put_if_absent(f"_inputs/{plan.region}.region.geojson", shapely.to_geojson(region.shape).encode())
    colours = f"_inputs/{model.sha256[:16]}.preview.json"
    if store.stat(colours) is None:
        session = session_of(model, plan.provider, plan.threads)
        store.put_if_absent(colours, colours_of(session, model.profile, plan.micro_batch_px).to_json())
    return dataclasses.replace(plan, preview=model.sha256[:16])


def embed(
    inv_path: str,
    model_path: str,
    out: str,
    options: EmbedOptions,
    command: str,
    say: Callable[[str], None],
    bars: bool,
) -> dict[str, Any]:
    """Runs the main job.

    Args:
      command: as the user typed it, for the run's record. say: takes lines for the log. bars: whether to draw progress.

    Returns:
      The summary: counts, seconds, what failed.

    Raises:
      BadInput: before any work.
    """
    plan, budget, tiles = make_plan(inv_path, model_path, out, options)
    engine = engine_of(options.runner, options.workers)
    store = open_store(plan.out)
    say(f"{len(tiles)} tiles, period {plan.period}, {plan.model_name} on {device_kind(plan.provider)}")
    for sentence in [*store.concerns(), *room_for(store, plan, tiles, options.region)]:
        say(f"warning: {sentence}")
    say("\n".join([memory_words(budget, options.workers), *(f"warning: {w}" for w in period_of(plan.period).warnings)]))
    store.replace(f"_runs/{plan.run}/plan.json", plan.to_json().encode())
    began, clock = dt.datetime.now(dt.UTC), time.perf_counter()
    region = options.region
    expected = sum(len(tasks_of(t, "", clip_of(region, t) if region else None, plan.block_px)) for t in tiles)
    with (
        kept_file(store, f"_runs/{plan.run}/workers.log") as log,
        at_work(engine, log),
        Progress(store, plan.run, expected, say, bars),
    ):
        _run(store, plan, engine, options.beam_args, say)
    summary = record_of(store, plan, tiles, expected, command, began, time.perf_counter() - clock)
    store.sweep()
    return summary


def _run(store: Store, plan: Plan, engine: Local, beam_args: Sequence[str], say: Callable[[str], None]) -> None:
    """Runs the graph, again where a worker process was lost: then only what is missing is done.

    A block that ends its worker twice is a failed block, so that this comes to an end.

    Raises:
      WorkerLost: workers end before they have done anything, again and again.
    """
    before, in_vain = -1, 0
    while True:
        pipeline = beam.Pipeline(options=engine.options(beam_args))
        _ = pipeline | EmbedTiles(plan)
        try:
            pipeline.run().wait_until_finish()
            return
        except RuntimeError as e:
            if engine.workers == 1 or not lost_worker(e):
                raise
            left = len(store.names(f"_runs/{plan.run}/blocks"))
            in_vain, before = in_vain + 1 if left == before else 0, left
            if in_vain == LOST_IN_VAIN:
                raise WorkerLost(
                    f"workers of this run end before a block is done, {LOST_IN_VAIN + 1} times in a row: killed for "
                    f"their memory? See {store.url}/_runs/{plan.run}/workers.log"
                ) from e
        say("a worker process has ended (killed, or out of memory): going on with what is missing")


def embed_dpixels(folder: str, model_path: str, out: str, device: str, warn: Callable[[str], None]) -> dict[str, Any]:
    """Embeds a d-pixel folder in the published layout; writes `<name>.npy` and `<name>_scales.npy`.

    Pixels without a valid optical observation get -128 and NaN. Samplers that draw do so by the folder's name.

    Raises:
      BadInput: a model or folder that cannot be used.
    """
    model = open_model(model_path)
    source = Path(folder)
    pixels = dpixels.load(source, warn)
    provider = provider_for(device, model)
    session = session_of(model, provider)
    name = source.resolve().name
    begun = time.perf_counter()
    codes, scale = encode_window(session, model.profile, Place(name, "", 0, 0), pixels, None, MICRO_BATCH_PX[provider])
    seconds = time.perf_counter() - begun
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise BadInput(f"--out {out}: there is a file of that name")
    store = open_store(out)
    for file, array in ((f"{name}.npy", codes), (f"{name}_scales.npy", scale)):
        with store.writer(file) as f:
            np.save(f, array, allow_pickle=False)
    store.sweep()
    embedded = int(np.isfinite(scale).sum())
    return {
        "codes": str(target / f"{name}.npy"),
        "scales": str(target / f"{name}_scales.npy"),
        "shape": list(codes.shape),
        "pixels": int(scale.size),
        "embedded": embedded,
        "no_optical": int(scale.size) - embedded,
        "model": model.name,
        "device": device_kind(provider),
        "seconds": round(seconds, 2),
    }


def incomplete(summary: dict[str, Any]) -> bool:
    """Whether something that was asked for is not published."""
    return bool(summary["totals"]["tiles_published"] < summary["totals"]["tiles"] or summary["failures"])
