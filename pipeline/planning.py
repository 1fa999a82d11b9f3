"""Planning: what a run wants, held against everything that can be known before work starts."""

import dataclasses
import datetime as dt
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shapely

from model.errors import BadInput
from model.modelfile import ModelFile, open_model
from model.profile import Profile
from pipeline.engines import Engine, Job, Local
from pipeline.reach import check_reach
from pipeline.room import check_room
from transforms import dpixels, inventory
from transforms.disk_store import LocalStore
from transforms.embed import budget_of
from transforms.encode import CPU, MICRO_BATCH_PX, PROVIDERS, check_pairing, cores, provider_for, session_of
from transforms.grid import blocks_of
from transforms.inventory import Inventory
from transforms.memory import S1_BYTES, S2_NATIVE_BYTES, Budget
from transforms.objects import local_file
from transforms.plans import Plan, digest_of, tasks_of
from transforms.preview import colours_of
from transforms.regions import Region, clip_of, tiles_of
from transforms.stac import item_path, product_record
from transforms.stac_collection import LICENCE_FORM
from transforms.storage import Store, open_store

READERS = 16  # files read at once by a process (facts, sources-and-cogs 3.2: more only costs on small machines)


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """What a user may ask of `embed`.

    Attributes:
      tiles: names, () for all of the inventory. region: pixels wanted, None for whole tiles.
      device: auto, cpu or cuda. block_px: side of a block. memory_gib: what a worker may take.
      waves: "" for one job, "all" or names for one after another (pipeline.waves).
      engine: what runs the graph. wait: for its end. max_failures: 0 for no limit. force: redo what is published.
      overviews: published with them; tiles that are published keep what they have. licence: an SPDX identifier for the
        collection, "" to leave what stands there.
      beam_args: passed to Beam as they are.
    """

    tiles: tuple[str, ...] = ()
    region: Region | None = None
    device: str = "auto"
    block_px: int = 2048
    memory_gib: float = 8.0
    engine: Engine = dataclasses.field(default_factory=Local)
    wait: bool = True
    waves: str = ""
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


def at_hand(path: str) -> str:
    """A file of this machine: itself, or a copy of what a URL of a bucket names.

    Raises:
      BadInput: no such object.
    """
    if not path.startswith(("gs://", "s3://")):
        return path
    folder, _, name = path.rpartition("/")
    try:
        return str(local_file(open_store(folder), name))
    except FileNotFoundError:
        raise BadInput(f"{path}: there is no such object") from None


def provider_of(device: str, model: ModelFile, engine: Engine) -> str:
    """The provider of the workers: on this machine what `provider_for` finds, elsewhere what the user says.

    Raises:
      BadInput: as `provider_for`; `auto` for workers that are not this machine.
    """
    if not engine.elsewhere:
        return provider_for(device, model)
    if device not in PROVIDERS:
        raise BadInput(
            f"--device {device} with --runner {engine.name}: say cpu or cuda, the workers are not this machine"
        )
    check_pairing(model, PROVIDERS[device])
    return PROVIDERS[device]


@dataclasses.dataclass(frozen=True)
class Planned:
    """A plan and what it was made of.

    Attributes:
      budget: memory of one block of its largest tile. tiles: its tiles. job: as the engine knows it.
      record: of the product. inv_path: the inventory on this machine. region: pixels wanted.
    """

    plan: Plan
    budget: Budget
    tiles: list[str]
    job: Job
    model: ModelFile
    record: dict[str, Any]
    inv_path: str
    region: Region | None


def make_plan(inv_path: str, model_path: str, out: str, options: EmbedOptions) -> tuple[Plan, Budget, list[str]]:
    """As `planned`, and the inputs are copied content-addressed to `OUT/_inputs/`.

    Returns:
      The plan, the budget of its largest tile, and its tiles.

    Raises:
      BadInput: anything that can be known before work starts.
    """
    found = deposited(planned(inv_path, model_path, out, options))
    return found.plan, found.budget, found.tiles


def deposited(made: Planned) -> Planned:
    """A plan whose product has claimed the output folder, and whose inputs lie there.

    Raises:
      BadInput: the folder holds another product, or cannot be written to.
    """
    plan, store = made.plan, open_store(made.plan.out)
    try:
        check_product(store, made.record)
        plan = _deposit(store, plan, made.model, Path(made.inv_path), made.tiles, made.region)
    except OSError as e:
        raise BadInput(f"--out {plan.out}: it cannot be written to ({e.strerror})") from None
    return dataclasses.replace(made, plan=plan)


def wanted_tiles(inv: Inventory, options: EmbedOptions) -> list[str]:
    """The tiles of an inventory that a run is about, sorted.

    Raises:
      BadInput: a name that it has not; a region that holds nothing of its tiles.
    """
    check_tiles(inv, options.tiles)
    tiles = sorted(set(options.tiles) or set(inv.tiles))
    if options.region is not None:
        touched = set(tiles_of(options.region))
        tiles = [t for t in tiles if t in touched]
        if not tiles:
            raise BadInput(f"the region touches none of the tiles of {inv.path} ({', '.join(inv.tiles[:8])})")
        tiles = [t for t in tiles if tasks_of(t, "", clip_of(options.region, t), options.block_px)]
        if not tiles:
            raise BadInput("the region holds the centre of no 10 m pixel: make it larger")
    return tiles


def planned(inv_path: str, model_path: str, out: str, options: EmbedOptions) -> Planned:
    """Checks the inputs and fixes the plan; nothing is written, and no bucket of `out` is asked.

    Raises:
      BadInput: anything that can be known before work starts.
    """
    engine = options.engine
    inv_path = at_hand(inv_path)
    model = open_model(at_hand(model_path))
    inv = inventory.read_header(inv_path)
    check_sources(model, inv)
    list(blocks_of(inv.tiles[0], options.block_px))  # refuses a bad size
    if not re.fullmatch(LICENCE_FORM, options.licence or "various"):
        raise BadInput(f"--licence {options.licence}: an SPDX identifier is wanted, for example CC-BY-4.0")
    provider = provider_of(options.device, model, engine)
    if not options.wait and not engine.elsewhere:
        raise BadInput(f"--no-wait with --runner {engine.name}: its workers end with this program")
    tiles = wanted_tiles(inv, options)
    check_reach(inv, tiles)
    if not out.startswith(("gs://", "s3://")):
        store = open_store(out)
        out = store.url
        if isinstance(store, LocalStore) and Path(store.root).exists() and not Path(store.root).is_dir():
            raise BadInput(f"--out {out}: there is a file of that name")
    record = product_record(model.name, model.sha256, model.profile, inv.overlap)
    threads = 0 if engine.elsewhere else max(1, cores() // max(1, engine.processes))
    plan = Plan(
        run=f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{os.urandom(3).hex()}",
        out=out.rstrip("/"),
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
        memory_bytes=int(options.memory_gib * 2**30) // max(1, engine.blocks_at_once),
        max_failures=options.max_failures,
        force=options.force,
        preview="",
        version=software_version(),
        overlap=inv.overlap,
        overviews=options.overviews,
        licence=options.licence,
        blocks_at_once=engine.blocks_at_once,
    )
    budget = budget_of(plan, model, inventory.read_tile(inv_path, worst_tile(inv, tiles)))
    job = Job(plan.run, plan.out, options.device, budget.total_bytes, options.beam_args)
    engine.check(job)
    return Planned(plan, budget, tiles, job, model, record, inv_path, options.region)


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
        # Of the model alone: not of the card that a run happens to have, nor of whether this machine has one.
        provider = CPU if "cpu" in model.variant.devices else plan.provider
        session = session_of(model, provider, plan.threads)
        store.put_if_absent(colours, colours_of(session, model.profile, MICRO_BATCH_PX[provider]).to_json())
    return dataclasses.replace(plan, preview=model.sha256[:16])
