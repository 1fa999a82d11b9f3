"""Dry run: what `embed` would do, with everything checked and nothing read, encoded or submitted."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from pipeline.embed import blocks_of_plan, waves_wanted
from pipeline.engines.look import look
from pipeline.graph import EmbedTiles
from pipeline.planning import EmbedOptions, Planned, deposited, planned
from pipeline.words import memory as memory_words
from transforms import inventory
from transforms.disk_store import LocalStore
from transforms.encode import device_kind
from transforms.storage import open_store
from transforms.tiles import plan_tile


def dry_run(inv_path: str, model_path: str, out: str, options: EmbedOptions) -> dict[str, Any]:
    """What `embed` would do: everything is checked, nothing is read or encoded.

    Where the workers are elsewhere nothing outside this machine is asked, the output's bucket neither, so that a job
    can be checked without network and credentials: then all tiles count as tiles to do.

    Raises:
      BadInput: as `embed`.
    """
    engine = options.engine
    made = planned(inv_path, model_path, out, options)
    if engine.elsewhere:
        counts = {"tiles_to_do": len(made.tiles), "tiles_published": None, "blocks": blocks_of_plan(made)}
    else:
        counts = _counted(made)
    waves = waves_wanted(inventory.read_header(made.inv_path), options) if options.waves else []
    found = look(engine, made.job, EmbedTiles(made.plan))
    return {
        "tiles": len(made.tiles),
        **counts,
        "device": f"{options.device} of the workers" if engine.elsewhere else device_kind(made.plan.provider),
        "memory": memory_words(made.budget, engine.processes, engine.blocks_at_once),
        "memory_per_worker_bytes": made.budget.total_bytes * engine.blocks_at_once,
        "beam_options": found.pop("options"),
        "job": found,
        "waves": {wave.name: len(wave.tiles) for wave in waves},
        "plan": dataclasses.asdict(made.plan),
    }


def _counted(made: Planned) -> dict[str, Any]:
    """What is to be done of a plan whose output this machine reaches: with a look at what is published there."""
    target = open_store(made.plan.out)
    new = target.stat("_inputs/product.json") is None
    try:
        plan = deposited(made).plan
        tasks = [plan_tile(plan, tile) for tile in made.tiles]
    finally:
        if new:  # a look must not claim the folder for a product
            target.delete_all("_inputs")
            target.sweep()
            if isinstance(target, LocalStore):
                with contextlib.suppress(OSError):  # it holds something else
                    Path(target.root).rmdir()
    return {
        "tiles_to_do": sum(bool(t) for t in tasks),
        "tiles_published": sum(not t for t in tasks),
        "blocks": sum(len(t) for t in tasks),
    }
