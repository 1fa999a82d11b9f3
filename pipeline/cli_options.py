"""Options that several verbs take."""

from typing import Annotated

import typer

from model.errors import BadInput
from transforms.regions import Region, region_from_bbox, region_from_file

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
Inv = Annotated[str, typer.Argument(metavar="INV", help="Inventory file, from `inventory build`.")]
Out = Annotated[str, typer.Argument(metavar="OUT", help="Output folder of `embed`.")]
Model = Annotated[str, typer.Option("--model", help="Model file (.onnx), from `model import`.")]
Tiles = Annotated[str, typer.Option("--tiles", help="MGRS tiles: A,B,.. or @FILE with one a line.")]
RegionFile = Annotated[str, typer.Option("--region", help="GeoJSON file: polygons of the region.")]
Bbox = Annotated[str, typer.Option("--bbox", help="W,S,E,N in degrees; W > E crosses the antimeridian.")]
Block = Annotated[int, typer.Option("--block", help="Side of a block in pixels, a multiple of 256.")]
Memory = Annotated[float, typer.Option("--memory", help="GiB that a worker may take.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def region_of(region: str, bbox: str) -> Region | None:
    if region and bbox:
        raise BadInput("--region and --bbox: give one of them")
    return region_from_file(region) if region else region_from_bbox(bbox) if bbox else None
