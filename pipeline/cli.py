"""The command line: verbs, options and exit codes; what a verb does stands in its own module."""

import importlib.metadata
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from model.errors import BadInput
from pipeline import cli_embed, cli_model, cli_train, console, words
from pipeline.cli_options import Bbox, Block, Device, Inv, Json, Memory, Model, Out, RegionFile, Tiles, region_of
from pipeline.exits import ended, leave_with, stop_politely
from transforms.periods import period_of
from transforms.regions import names_from_list, tiles_of

app = typer.Typer(
    name="tessera-beam",
    help="TESSERA pixel embeddings on Apache Beam: STAC in, int8 Cloud-Optimized GeoTIFFs out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
inventory_app = typer.Typer(help="The frozen list of scenes of a run.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(inventory_app, name="inventory")
app.add_typer(cli_model.app, name="model")
app.add_typer(cli_train.app, name="train")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tessera-beam {importlib.metadata.version('tessera-beam')}")
        raise typer.Exit


@app.callback()
def top(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The release.")] = False,
) -> None:
    """TESSERA pixel embeddings on Apache Beam: STAC in, int8 Cloud-Optimized GeoTIFFs out."""


@app.command()
def demo(
    folder: Annotated[str, typer.Argument(metavar="[DIR]", help="Where to build it.")] = "demo-out",
    api: Annotated[bool, typer.Option("--api", help="Search over a loopback STAC API, not the files.")] = False,
    as_json: Json = False,
) -> None:
    """Build a small synthetic planet and run the whole chain on it.

    Example: tessera-beam demo demo-out
    """
    from pipeline.demo.run import demo as run

    result = run(folder, api, console.say, console.on_terminal())
    console.show(result, as_json, words.demo)
    leave_with(result["exit_code"])


@inventory_app.command("build")
def inventory_build(
    catalog: Annotated[
        list[str], typer.Option("--catalog", help="Provider, URL, folder or file; repeat to join S2 and S1.")
    ],
    period: Annotated[str, typer.Option("--period", help="A year, or first/last day of at most twelve months.")],
    out: Annotated[str, typer.Option("--out", help="Inventory file to write.")],
    provider: Annotated[
        list[str] | None,
        typer.Option("--as", help="Whose description a copy follows, one for each --catalog ('-': none)."),
    ] = None,
    tiles: Tiles = "",
    region: RegionFile = "",
    bbox: Bbox = "",
    land: Annotated[bool, typer.Option("--land", help="All tiles with land.")] = False,
    as_json: Json = False,
) -> None:
    """Search catalogues once and freeze the scenes of a period. Stopped in the middle, the same command goes on.

    Example: tessera-beam inventory build --catalog earth-search --catalog planetary-computer --period 2024
    --tiles 33TWL --out inv.parquet
    """
    from pipeline import inventory
    from pipeline.search_progress import SearchProgress

    chosen = sum(map(bool, (tiles, region, bbox, land)))
    if chosen != 1:
        raise BadInput("which tiles? give one of --tiles, --region, --bbox and --land")
    when = period_of(period)
    if tiles:
        names, note = names_from_list(tiles), ""
    elif land:
        from transforms.land import land_tiles

        names, note = list(land_tiles()), "all land"
    else:
        names, note = tiles_of(region_of(region, bbox)), f"--region {region}" if region else f"--bbox {bbox}"  # type: ignore[arg-type]
    providers: list[str | None] = [None if p == "-" else p for p in provider or []]
    if len(providers) > len(catalog):
        raise BadInput(f"--as is given {len(providers)} times for {len(catalog)} --catalog")
    pairs = list(zip(catalog, providers + [None] * (len(catalog) - len(providers)), strict=True))
    command = shlex.join(["tessera-beam", *sys.argv[1:]])
    with SearchProgress(len(set(names)), console.say, console.on_terminal()) as progress:
        result = inventory.build(pairs, when, names, out, note, progress=progress, command=command, say=console.say)
    for warning in words.inventory_warnings(result):
        console.warn(warning)
    console.show(result, as_json, words.inventory)


@inventory_app.command("explain")
def inventory_explain(
    inv: Inv,
    scene: Annotated[str, typer.Option("--scene", help="Item id.")] = "",
    other: Annotated[str, typer.Option("--against", help="Inventory of the same period from other sources.")] = "",
    model: Annotated[str, typer.Option("--model", help="Model file to compare by (with --against).")] = "",
    tile: Annotated[str, typer.Option("--tile", help="MGRS tile to compare (with --against).")] = "",
    window: Annotated[str, typer.Option("--window", help="ROW,COL,H,W in 10 m pixels (with --against).")] = "",
    as_json: Json = False,
) -> None:
    """Say in words what was decided about a scene, or what other sources do to a model's inputs and embeddings.

    Example: tessera-beam inventory explain inv.parquet --scene S2A_T33TWL_20240422T100031_L2A
    """
    if bool(scene) == bool(other):
        raise BadInput("what is to be explained? give --scene ID, or --against INV2 with --model M.onnx")
    if other:
        if not model:
            raise BadInput(f"--against {other}: give --model too, whose profile both are read by")
        from pipeline import against

        console.show(against.against(inv, other, model, tile, window), as_json, against.words)
        return
    from pipeline import inventory

    console.show(inventory.explain(inv, scene), as_json, lambda r: str(r["text"]))


@inventory_app.command("amend")
def inventory_amend(
    inv: Inv,
    drop: Annotated[list[str], typer.Option("--drop", help="SCENE or SCENE:BAND; repeat for more.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")],
    out: Annotated[str, typer.Option("--out", help="New inventory file.")],
    as_json: Json = False,
) -> None:
    """Leave a bad asset out, on the record; the old inventory stays as it is.

    Example: tessera-beam inventory amend inv.parquet --drop S2A_..:B04 --reason "file ends early" --out inv2.parquet
    """
    from pipeline import inventory

    pairs: list[tuple[str, str | None]] = []
    for text in drop:
        scene, colon, band = text.rpartition(":")
        pairs.append((scene, band) if colon else (text, None))
    console.show(inventory.amend(inv, pairs, reason, out), as_json, words.amended)


@app.command()
def dpixels(
    inv: Inv,
    profile: Annotated[str, typer.Option("--profile", help="Family whose rules apply: v2, v1.1-mpc+nearest ..")],
    tile: Annotated[str, typer.Option("--tile", help="MGRS tile.")],
    window: Annotated[str, typer.Option("--window", help="ROW,COL,H,W in 10 m pixels.")],
    out: Annotated[str, typer.Option("--out", help="Folder to write.")],
    as_json: Json = False,
) -> None:
    """Write the d-pixels of a window in the published layout.

    Example: tessera-beam dpixels inv.parquet --profile v2 --tile 33TWL --window 0,0,256,256 --out window
    """
    from pipeline.dpixels import dpixels as run

    console.show(run(inv, profile, tile, window, out, console.warn), as_json, words.dpixels)


@app.command()
def quote(
    inv: Inv,
    model: Model,
    tiles: Tiles = "",
    region: RegionFile = "",
    bbox: Bbox = "",
    block: Block = 2048,
    memory: Memory = 8.0,
    card: Annotated[str, typer.Option("--card", help="L4, L40S, A100 or H100.")] = "L40S",
    dollars: Annotated[float | None, typer.Option("--dollars-per-hour", help="Price of the machine.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a run will read, compute, store and cost, before anything is spent.

    Example: tessera-beam quote inv.parquet --model m.onnx --card L4
    """
    from pipeline import quote as verb

    names = tuple(names_from_list(tiles)) if tiles else ()
    result = verb.quote(inv, model, names, region_of(region, bbox), block, memory, card, dollars)
    console.show(result, as_json, verb.as_text)


app.command(context_settings={"allow_extra_args": True})(cli_embed.embed)
app.command()(cli_embed.drain)


@app.command()
def status(out: Out, as_json: Json = False) -> None:
    """Say what an output folder holds, what is missing and what failed.

    Example: tessera-beam status out
    """
    from pipeline.status import status as run

    result = run(out)
    console.show(result, as_json, words.status)


@app.command()
def stale(
    out: Out,
    inv: Annotated[str, typer.Option("--inventory", help="Inventory to hold the published tiles against.")],
    model: Annotated[str, typer.Option("--model", help="Model file; the output's own by default.")] = "",
    names: Annotated[str, typer.Option("--out", help="File for the names of stale tiles, one a line.")] = "",
    card: Annotated[str, typer.Option("--card", help="L4, L40S, A100 or H100, for the cost.")] = "L40S",
    as_json: Json = False,
) -> None:
    """Say which published tiles another inventory or model would change, why, and what making them again takes.

    Example: tessera-beam stale out --inventory newer.parquet --out stale.txt
    """
    from pipeline import stale as verb

    result = verb.stale(out, inv, model, card)
    if names:
        Path(names).write_text("".join(f"{row['tile']}\n" for row in result["tiles"]))
    console.show(result, as_json, verb.as_text)


@app.command()
def verify(
    out: Out,
    recompute: Annotated[int, typer.Option("--recompute", help="Random windows to make again from the sources.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of the choice of windows.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Check published tiles: files, checksums, codes; with --recompute also against their sources.

    Example: tessera-beam verify out --recompute 5
    """
    from pipeline.verify import verify as run

    result = run(out, recompute, seed, device)
    console.show(result, as_json, words.verified)
    leave_with(console.OK if result["ok"] else console.CHECK_FAILED)


@app.command()
def clean(
    out: Out,
    older_than: Annotated[str, typer.Option("--older-than", help="Age of what may go: 7d, 12h, 30m.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, remove nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Remove replaced revisions and orphans; never what an item names, never work that a run can still finish.

    Example: tessera-beam clean out --older-than 7d
    """
    from pipeline.clean import age_from_text
    from pipeline.clean import clean as run

    console.show(run(out, age_from_text(older_than), dry_run), as_json, words.cleaned)


@app.command()
def report(out: Out, as_json: Json = False) -> None:
    """Write OUT/_runs/report.html: map, pictures, counts, failures, timings.

    Example: tessera-beam report out
    """
    from pipeline.report import report as run

    console.show({"report": str(run(out))}, as_json, lambda r: str(r["report"]))


def run(argv: list[str]) -> int:
    """Runs the program and returns its exit code."""
    return ended(app, argv)


def main() -> None:
    """The console script."""
    stop_politely()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":  # torchrun starts a module
    main()
