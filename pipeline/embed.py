"""The embed verb: fixes the plan, runs the graph, says what became of it."""

import dataclasses
import datetime as dt
import json
import time
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from model.errors import BadInput, WorkerLost
from pipeline.engines import Engine
from pipeline.finish import licence_there
from pipeline.graph import EmbedTiles
from pipeline.planning import EmbedOptions, Planned, at_hand, deposited, planned, room_for, wanted_tiles
from pipeline.progress import Progress
from pipeline.record import closed, job_name
from pipeline.waiting import ask, signs_of, waited
from pipeline.waves import Wave, chosen, waves_of
from pipeline.words import memory as memory_words
from transforms import inventory
from transforms.encode import device_kind
from transforms.objects import kept_file
from transforms.periods import period_of
from transforms.plans import Plan, tasks_of
from transforms.regions import clip_of
from transforms.stac_collection import LICENCE
from transforms.storage import Store, open_store

LOST_IN_VAIN = 3  # times that workers may end in a row without a block more: two are what a block that kills needs


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
      The summary: counts, seconds, what failed; without waiting for the end, the job's id and link.

    Raises:
      BadInput: before any work.
    """
    made = deposited(planned(inv_path, model_path, out, options))
    plan, tiles, engine = made.plan, made.tiles, options.engine
    store = open_store(plan.out)
    where = f"workers of {engine.name}" if engine.elsewhere else device_kind(plan.provider)
    say(f"{len(tiles)} tiles, period {plan.period}, {plan.model_name} on {where}")
    for sentence in [*store.concerns(), *room_for(store, plan, tiles, options.region)]:
        say(f"warning: {sentence}")
    before = licence_there(store)
    if options.licence and before not in (LICENCE, options.licence):
        say(f"warning: --licence {options.licence}: the collection says {before} until now, of older tiles too")
    words = memory_words(made.budget, engine.processes, engine.blocks_at_once)
    say("\n".join([words, *(f"warning: {w}" for w in period_of(plan.period).warnings)]))
    expected = blocks_of_plan(made)
    store.replace(f"_runs/{plan.run}/plan.json", plan.to_json().encode())
    begun = {
        "command": command,
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        "tiles": tiles,
        "blocks": expected,
        "runner": engine.name,
        "waits": options.wait,
    }
    store.replace(job_name(plan), json.dumps(begun).encode())
    clock = time.perf_counter()
    with kept_file(store, f"_runs/{plan.run}/workers.log") as log:
        if not options.wait:
            with engine.at_work(made.job, log) as flags:
                return submitted(plan, engine, _pipeline(plan, flags).run())
        with Progress(store, plan.run, expected, say, bars):
            if left := _run(store, made, engine, log, say):
                return left
    summary = closed(store, plan, seconds=time.perf_counter() - clock)
    store.sweep()
    return summary


def embed_waves(
    inv_path: str, options: EmbedOptions, once: Callable[[EmbedOptions], dict[str, Any]], say: Callable[[str], None]
) -> dict[str, Any]:
    """Runs the main job wave by wave, each a run of its own; a wave that fails in parts does not hold up the next one.

    Args:
      once: `embed` with all its arguments but the options.

    Returns:
      The summary over all waves, and that of each in `waves`.

    Raises:
      BadInput: as `embed`; nobody is to wait.
    """
    if not options.wait:
        raise BadInput("--waves with --no-wait: waves run one after another; submit each alone with --waves NAME")
    waves = waves_wanted(inventory.read_header(at_hand(inv_path)), options)
    say(f"{len(waves)} waves: {', '.join(f'{w.name} ({len(w.tiles)} tiles)' for w in waves)}")
    found: list[dict[str, Any]] = []
    for n, wave in enumerate(waves, 1):
        say(f"wave {n} of {len(waves)}: {wave.name}, {len(wave.tiles)} tiles")
        alone = dataclasses.replace(options, tiles=wave.tiles, waves="")
        summary = once(alone)
        if "totals" not in summary:  # the operator has left the job to itself
            return summary
        found.append(summary | {"wave": wave.name})
    return joined(found)


def waves_wanted(inv: inventory.Inventory, options: EmbedOptions) -> list[Wave]:
    """The waves that a run is cut into.

    Raises:
      BadInput: a name that no wave has.
    """
    return chosen(waves_of(wanted_tiles(inv, options)), "" if options.waves == "all" else options.waves)


def joined(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of several runs of one job."""
    totals: dict[str, Any] = {}
    for summary in summaries:
        for name, value in summary["totals"].items():
            if isinstance(value, dict):
                causes = totals.setdefault(name, {})
                for cause, count in value.items():
                    causes[cause] = causes.get(cause, 0) + count
            else:
                totals[name] = totals.get(name, 0) + value
    said = [s["stopped"] for s in summaries if s["stopped"]]
    return summaries[-1] | {
        "seconds": round(sum(s["seconds"] for s in summaries), 2),
        "started": summaries[0]["started"],
        "totals": totals,
        "stopped": "; ".join(said),
        "unfinished": [t for s in summaries for t in s["unfinished"]][:20],
        "failures": [f for s in summaries for f in s["failures"]][:20],
        "waves": [{k: s[k] for k in ("wave", "run", "seconds", "totals")} for s in summaries],
    }


def blocks_of_plan(made: Planned) -> int:
    """Blocks of all tiles of a plan, published or not."""
    region, block_px = made.region, made.plan.block_px
    return sum(len(tasks_of(t, "", clip_of(region, t) if region else None, block_px)) for t in made.tiles)


def _pipeline(plan: Plan, flags: list[str]) -> beam.Pipeline:
    pipeline = beam.Pipeline(options=PipelineOptions(flags))
    _ = pipeline | EmbedTiles(plan)
    return pipeline


def submitted(plan: Plan, engine: Engine, result: Any) -> dict[str, Any]:
    """What a program needs of a job that nobody waits for."""
    if not getattr(result, "has_job", True):
        job_id = ""  # a flex template's launcher submits what was made here
    elif callable(getattr(result, "job_id", None)):
        job_id = result.job_id()
    else:
        job_id = str(getattr(result, "_job_id", ""))
    return {"run": plan.run, "out": plan.out, "runner": engine.name, "job": job_id, "link": engine.link(job_id)}


def _run(store: Store, made: Planned, engine: Engine, log: Any, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Runs the graph, again where a worker process was lost: then only what is missing is done.

    A block that ends its worker twice is a failed block, so that this comes to an end.

    Returns:
      None when the run has ended; what `submitted` says where the operator has left it to itself.

    Raises:
      WorkerLost: workers end before they have done anything, again and again, or give no sign of life.
    """
    plan = made.plan
    before, in_vain = -1, 0
    while True:
        with engine.at_work(made.job, log) as flags:
            try:
                result = _pipeline(plan, flags).run()
                job = submitted(plan, engine, result)
                if engine.elsewhere:
                    say(f"{engine.starts()}; job {job['job']} {job['link']}".rstrip())
                if waited(result, engine, signs_of(store, plan), lambda: ask(store, plan, engine, say)):
                    return None
                return job
            except RuntimeError as e:
                if not engine.lost(e):
                    raise
                left = len(store.names(f"_runs/{plan.run}/blocks"))
                in_vain, before = in_vain + 1 if left == before else 0, left
                if in_vain == LOST_IN_VAIN:
                    raise WorkerLost(
                        f"workers of this run end before a block is done, {LOST_IN_VAIN + 1} times in a row: killed "
                        f"for their memory? See {store.url}/_runs/{plan.run}/workers.log"
                    ) from e
        say("a worker process has ended (killed, or out of memory): going on with what is missing")


def incomplete(summary: dict[str, Any]) -> bool:
    """Whether something that was asked for is not published."""
    return bool(summary["totals"]["tiles_published"] < summary["totals"]["tiles"] or summary["failures"])


__all__ = ["EmbedOptions", "embed", "incomplete"]
