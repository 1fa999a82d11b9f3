"""The command line of the main job: what a run is told by options and by a job file, and how it is drained."""

import shlex
import sys
from typing import Annotated, Any

import typer

from model.errors import BadInput
from pipeline import console, words
from pipeline.cli_options import Bbox, Block, Device, Json, Memory, Model, Out, RegionFile, Tiles, region_of
from pipeline.exits import leave_with
from transforms.regions import names_from_list

Runner = Annotated[str, typer.Option("--runner", help="local, prism, portable, flink or dataflow.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="NAME=VALUE of the engine; repeat for more (docs/engines.md).")
]


def embed(
    context: typer.Context,
    inv: Annotated[str, typer.Argument(metavar="[INV]", help="Inventory file; none with --dpixels.")] = "",
    model: Model = "",
    out: Annotated[str, typer.Option("--out", help="Output folder.")] = "",
    dpixels: Annotated[str, typer.Option("--dpixels", help="Embed a d-pixel folder (v1.0 draws by its name).")] = "",
    config: Annotated[str, typer.Option("--config", help="Job file (TOML); options say more than it does.")] = "",
    tiles: Tiles = "",
    region: RegionFile = "",
    bbox: Bbox = "",
    device: Device = "auto",
    block: Block = 2048,
    memory: Memory = 8.0,
    runner: Runner = "local",
    engine: Settings = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes of the local runner.")] = 1,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Whether to wait for a job elsewhere.")] = True,
    waves: Annotated[str, typer.Option("--waves", help="Job after job by UTM zone: all, or names of waves.")] = "",
    overlap: Annotated[str, typer.Option("--overlap", help="full: every tile holds all of its pixels.")] = "full",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, stop.")] = False,
    max_failures: Annotated[
        int, typer.Option("--max-failures", help="Begin no further block after so many; 0: no limit.")
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Also redo what is published.")] = False,
    overviews: Annotated[
        bool, typer.Option("--overviews", help="Embeddings and scales with overviews: means of the vectors.")
    ] = False,
    licence: Annotated[str, typer.Option("--licence", help="SPDX id for the collection, e.g. CC-BY-4.0.")] = "",
    as_json: Json = False,
) -> None:
    """Make the embeddings: every tile of the inventory that is not published yet. After -- come Beam's own options.

    Example: tessera-beam embed inv.parquet --model m.onnx --out out --bbox 12.0,45.1,12.1,45.2
    """
    from pipeline import embed as verb
    from pipeline.engines import engine_of
    from pipeline.job_config import JobFile, read_job, settings_of
    from pipeline.planning import EmbedOptions

    if inv.startswith("--"):  # typer takes the first word after `--` for INV where a job file has named it
        context.args.insert(0, context.params.pop("inv"))
        inv = context.params["inv"] = ""
    given = {k: v for k, v in context.params.items() if _typed_in(context, k)}
    file = read_job(config) if config else JobFile({}, "local", {}, ())
    said: dict[str, Any] = {**context.params, **{_parameter(k): v for k, v in file.job.items()}, **given}
    if not said["model"] or not said["out"]:
        raise BadInput("embed needs --model M.onnx and --out DIR")
    if said["overlap"] != "full":
        raise BadInput(f"--overlap {said['overlap']}: this release knows 'full'")
    if bool(said["inv"]) == bool(dpixels):
        raise BadInput("what is to be embedded? give an inventory, or --dpixels DIR")
    if dpixels:
        from pipeline.embed_folder import embed_dpixels

        result = embed_dpixels(dpixels, said["model"], said["out"], said["device"], console.warn)
        console.show(result, as_json, words.embedded_dpixels)
        return
    name = runner if "runner" in given else file.runner
    settings = dict(file.settings if name == file.runner else {}) | dict(settings_of(engine or []))
    if "workers" in given:
        if name != "local":
            raise BadInput(f"--workers is of the local runner; for {name} see --set")
        settings["workers"] = workers
    options = EmbedOptions(
        tiles=tuple(names_from_list(said["tiles"])) if said["tiles"] else (),
        region=region_of(said["region"], said["bbox"]),
        device=said["device"],
        block_px=said["block"],
        memory_gib=said["memory"],
        engine=engine_of(name, settings),
        wait=said["wait"],
        waves=said["waves"],
        max_failures=said["max_failures"],
        force=said["force"],
        overviews=said["overviews"],
        licence=said["licence"],
        beam_args=(*file.beam, *context.args),
    )
    if dry_run:
        from pipeline.dry_run import dry_run as look

        console.show(look(said["inv"], said["model"], said["out"], options), as_json, words.dry_run)
        return
    command = shlex.join(["tessera-beam", *sys.argv[1:]])
    inv, bars = said["inv"], console.on_terminal()

    def once(options: EmbedOptions) -> dict[str, Any]:
        return verb.embed(inv, said["model"], said["out"], options, command, console.say, bars)

    result = verb.embed_waves(inv, options, once, console.say) if options.waves else once(options)
    if "totals" not in result:
        console.show(result, as_json, words.submitted)
        return
    console.show(result, as_json, words.embedded)
    leave_with(console.WITH_FAILURES if verb.incomplete(result) else console.OK)


def _typed_in(context: typer.Context, name: str) -> bool:
    """Whether an option was typed in, not filled in by its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _parameter(option: str) -> str:
    """Our name of an option of a job file."""
    return {"inventory": "inv"}.get(option, option.replace("-", "_"))


def drain(
    out: Out,
    run: Annotated[str, typer.Option("--run", help="Name of the run; the latest by default.")] = "",
    as_json: Json = False,
) -> None:
    """Have a run begin no further block; what it has begun is finished, what is missing is the next run's.

    Example: tessera-beam drain gs://bucket/embeddings
    """
    from pipeline.waiting import drain as stop
    from transforms.storage import open_store

    store = open_store(out)
    runs = sorted(f.rpartition("/")[2] for f in store.folders("_runs"))
    if run not in runs if run else not runs:
        raise BadInput(f"{out} has no run {run or 'at all'}; its runs: {', '.join(runs[-5:]) or 'none'}")
    stop(store, run or runs[-1])
    console.show({"out": out, "run": run or runs[-1]}, as_json, words.drained)
