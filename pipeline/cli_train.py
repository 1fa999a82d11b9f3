"""Training verbs of the command line: shards, run, probe."""

from pathlib import Path
from typing import Annotated

import typer

from model.errors import BadInput
from pipeline import console
from pipeline.cli_embed import Runner, Settings
from pipeline.cli_options import Bbox, Inv, Json, Memory, RegionFile, Tiles, region_of
from pipeline.exits import leave_with
from transforms.regions import names_from_list

app = typer.Typer(help="Training: shards, runs, probes.", no_args_is_help=True, rich_markup_mode=None)


@app.command("shards", context_settings={"allow_extra_args": True})
def train_shards(
    context: typer.Context,
    inv: Inv,
    out: Annotated[str, typer.Option("--out", help="Folder of the shards.")],
    every: Annotated[int, typer.Option("--every", help="Every n-th pixel of a tile's rows and columns.")] = 20,
    min_dates: Annotated[int, typer.Option("--min-dates", help="Least valid optical dates of a pixel.")] = 20,
    tiles: Tiles = "",
    region: RegionFile = "",
    bbox: Bbox = "",
    stratify: Annotated[int, typer.Option("--stratify", help="Choose so many tiles by latitude and land.")] = 0,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="GeoJSON kept out; repeat for more.")] = None,
    profile: Annotated[str, typer.Option("--profile", help="By whose rules pixels are made: v2, v1.1-mpc, ..")] = "v2",
    shard_records: Annotated[int, typer.Option("--shard-records", help="Records of a shard.")] = 1 << 14,
    bucket_mb: Annotated[int, typer.Option("--bucket-mb", help="Of a bucket of the shuffle, at most.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of records and the choice of tiles.")] = 0,
    memory: Memory = 8.0,
    runner: Runner = "local",
    engine: Settings = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes of the local runner.")] = 1,
    as_json: Json = False,
) -> None:
    """Make training shards: sampled pixels with all that was observed of them, in one global random order.

    Example: tessera-beam train shards inv.parquet --every 20 --out shards --exclude test-regions.geojson
    """
    from pipeline.engines import engine_of
    from pipeline.job_config import settings_of
    from pipeline.shards import ShardOptions, make_shards, words
    from transforms.sampling import Rule

    settings = dict(settings_of(engine or []))
    if workers != 1:
        if runner != "local":
            raise BadInput(f"--workers is of the local runner; for {runner} see --set")
        settings["workers"] = workers
    options = ShardOptions(
        rule=Rule(every, min_dates),
        tiles=tuple(names_from_list(tiles)) if tiles else (),
        region=region_of(region, bbox),
        stratify=stratify,
        exclude=tuple(exclude or ()),
        profile=profile,
        shard_records=shard_records,
        bucket_mb=bucket_mb,
        seed=seed,
        memory_gib=memory,
        engine=engine_of(runner, settings),
        beam_args=tuple(context.args),
    )
    result = make_shards(inv, out, options, console.say)
    console.show(result, as_json, words)
    leave_with(console.WITH_FAILURES if result["failed"] else console.OK)


@app.command("run")
def train_run(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="TOML file, or paper-v1, v1.1, v2-student, demo.")],
    out: Annotated[str, typer.Option("--out", help="Folder for checkpoints and progress.")] = "run",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="TABLE.NAME=VALUE in place of the config's; repeat for more.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew where the folder holds a training.")] = False,
    as_json: Json = False,
) -> None:
    """Train an encoder, or go on with a training that was stopped (needs the train extra).

    On several cards or machines: torchrun --nproc-per-node 8 --no-python tessera-beam train run CONFIG, which sets
    RANK, WORLD_SIZE and the like; a batch is that of all ranks together.

    Example: tessera-beam train run demo --set data.shards=shards --out run
    """
    from pipeline.training import train, trained

    result = train(config, out, overrides=settings or (), resume=not fresh, say=console.say)
    if result["rank"] == 0:
        console.show(result, as_json, trained)


@app.command("probe")
def train_probe(
    folder: Annotated[str, typer.Argument(metavar="SET", help="Probe set: shards with labels.parquet beside them.")],
    model: Annotated[list[str] | None, typer.Option("--model", help="Model file; repeat for more.")] = None,
    fuse: Annotated[
        list[str] | None, typer.Option("--fuse", help=".npy of other embeddings, a row a record; repeat for more.")
    ] = None,
    out: Annotated[str, typer.Option("--out", help="Folder for the result and its pictures.")] = "",
    sources: Annotated[
        str, typer.Option("--sources", help="Baselines: chance,steps,monthly,harmonic,pca,untrained,presto.")
    ] = "",
    heads: Annotated[str, typer.Option("--heads", help="knn5,linear,mlp; of a segmentation unet,linear.")] = "",
    shares: Annotated[str, typer.Option("--shares", help="Labels given, in per cent.")] = "1,5,10,30,100",
    shots: Annotated[str, typer.Option("--shots", help="Labels given of each class.")] = "1,5,10",
    dims: Annotated[str, typer.Option("--dims", help="Prefixes of the embedding to compare.")] = "128,64,32,16",
    seeds: Annotated[int, typer.Option("--seeds", help="Splits of the set, or draws of its labels.")] = 10,
    untrained: Annotated[
        list[str] | None, typer.Option("--untrained", help="Model file of random weights; made where none is given.")
    ] = None,
    presto: Annotated[str, typer.Option("--presto", help="Weights of Presto (default_model.pt).")] = "",
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Say what a model's embeddings are worth to small heads, beside baselines (needs the train extra).

    Example: tessera-beam train probe sets/us --model m.onnx --seeds 5 --out probe
    """
    from model.probing.table import text
    from pipeline.probing import SOURCES, probe

    def listed(names: str) -> list[str]:
        return [name.strip() for name in names.split(",") if name.strip()]

    def numbers(option: str, given: str) -> list[float]:
        try:
            return [float(name) for name in listed(given)]
        except ValueError:
            raise BadInput(f"{option} {given}: numbers with commas between them") from None

    # Before anything is embedded: that takes longest.
    for option, given in (("--shots", shots), ("--dims", dims), ("--seeds", str(seeds))):
        if any(n < 1 or n != int(n) for n in numbers(option, given)):
            raise BadInput(f"{option} {given}: whole numbers, 1 or more")
    if not all(0 < share <= 100 for share in numbers("--shares", shares)):
        raise BadInput(f"--shares {shares}: per cent of the labels, above 0 and up to 100")
    if presto and not Path(presto).is_file():
        raise BadInput(f"--presto {presto}: no such file; it is the default_model.pt that Presto's authors publish")
    result = probe(
        folder,
        model or (),
        sources=listed(sources) or SOURCES,
        fuse=fuse or (),
        shares=[share / 100 for share in numbers("--shares", shares)],
        shots=[int(n) for n in numbers("--shots", shots)],
        seeds=seeds,
        dims=[int(n) for n in numbers("--dims", dims)],
        names=listed(heads),
        untrained=untrained or (),
        presto=presto or None,
        out=out or None,
        device=device,
        say=console.say,
    )
    for said in result["warnings"]:
        console.warn(said)
    console.show(result, as_json, text)
