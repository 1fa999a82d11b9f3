"""Tiles: the blocks that a tile still needs, and its publication by whoever makes the last of them."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from transforms import inventory
from transforms.assembly import DamagedFragment
from transforms.embed import Worker, clip_at, embed_block, inventory_of, scenes_at
from transforms.grid import TILE_PX
from transforms.plans import BlockTask, Plan, desk_of, revision_of, tasks_of
from transforms.publish import TileFacts, clear_work, publish_tile, published_item, published_revision
from transforms.receipts import DONE
from transforms.regions import Clip, Region, clip_of, region_from_geojson, union_clips
from transforms.storage import open_store


@functools.lru_cache(maxsize=2)
def _region(plan: Plan) -> Region | None:
    if not plan.region:
        return None
    return region_from_geojson(json.loads(open_store(plan.out).get(f"_inputs/{plan.region}.region.geojson")))


def plan_tile(plan: Plan, tile: str) -> tuple[BlockTask, ...]:
    """The blocks that a tile still needs: none when its revision is published.

    Pixels that were embedded for another region stay: the new revision covers both. Publishing the new region alone
    would take the old one's pixels away.
    """
    store = open_store(plan.out)
    item = published_item(store, tile, plan.period, plan.model_name)
    properties = item.get("properties", {})
    region = _region(plan)
    clip = clip_of(region, tile) if region else None
    if clip is not None and properties:
        clip = _joined(clip, clip_at(plan, _clip_digest(properties)), tile)
    if clip is not None:
        store.put_if_absent(f"_inputs/{clip.digest}.clip.geojson", clip.geojson.encode())
    scenes = inventory.frozen_digest(inventory_of(plan), tile)
    revision = revision_of(plan.product, tile, plan.period, scenes, clip.digest if clip else "")
    if properties.get("tessera:revision") == revision and not plan.force:
        clear_work(store, plan.period, tile, revision)  # of a worker that died between publishing and clearing up
        return ()
    return tasks_of(tile, revision, clip, plan.block_px)


def _clip_digest(properties: Mapping[str, Any]) -> str:
    """Digest of what part of a tile an item holds, "" for all of it."""
    return str(properties.get("tessera:clip", {}).get("digest", ""))


def _joined(clip: Clip, earlier: Clip | None, tile: str) -> Clip | None:
    """What a tile holds when `clip` is added to `earlier` (None: the whole tile); `earlier` where that is all."""
    if earlier is None:
        return None
    both = union_clips(clip, earlier)
    if both == earlier:
        return earlier
    whole = (tile, 0, 0, TILE_PX, TILE_PX)
    # By pixels: a union can have other corners than the clip that already covers it.
    pixels = both.mask(*whole)
    return next((c for c in (earlier, clip) if np.array_equal(pixels, c.mask(*whole))), both)


def publish_if_complete(worker: Worker, task: BlockTask) -> bool:
    """Publishes the task's tile when all of its blocks are done. True when this call did it.

    A block whose fragments are damaged is made again on the way, by this worker.
    """
    plan, store = worker.plan, worker.store
    if not plan.force and published_revision(store, task.block.tile, plan.period, plan.model_name) == task.revision:
        # Another run has published the tile while this one made the block: nobody else comes by to clear it away.
        clear_work(store, plan.period, task.block.tile, task.revision)
        return False
    clip = clip_at(plan, task.clip)
    tasks = tasks_of(task.block.tile, task.revision, clip, plan.block_px)
    statuses = desk_of(plan, task).statuses(store)
    if any(statuses.get(t.block.name) != DONE for t in tasks):
        return False
    # Another run may have published other pixels of this tile since it was planned. To put ours in their place would
    # lose them: the tile stays as it is, and the next run makes it for both.
    there = published_item(store, task.block.tile, plan.period, plan.model_name).get("properties", {})
    if there and clip is not None and _joined(clip, clip_at(plan, _clip_digest(there)), task.block.tile) != clip:
        return False
    record = None if clip is None else {"digest": clip.digest, "geometry": json.loads(clip.geojson)}
    scenes = list(scenes_at(inventory_of(plan), task.block.tile))
    facts = TileFacts(scenes, worker.frozen, plan.inventory, record)
    for _ in tasks:  # a store that damages one fragment after another must not keep a worker for ever
        try:
            return publish_tile(store, plan, worker.model.profile, tasks, facts, plan.version, plan.overviews)
        except DamagedFragment as e:
            damaged = next(t for t in tasks if t.block.name == e.block)
            if embed_block(worker, damaged).status != DONE:
                return False
    return False
