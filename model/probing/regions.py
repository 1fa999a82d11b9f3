"""Regions: whether what a model is tested on lies where it was trained."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

Box = tuple[float, float, float, float]  # west, south, east, north; degrees

NOT_SAID = "its record does not say what it was trained on"


def within(bounds: object, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) which points lie in any of the boxes [west, south, east, north]; west above east crosses 180 degrees."""
    inside = np.zeros(len(lon), bool)
    for box in bounds if isinstance(bounds, list | tuple) else ():
        west, south, east, north = (float(v) for v in box)
        across = (lon >= west) | (lon <= east) if west > east else (lon >= west) & (lon <= east)
        inside |= across & (lat >= south) & (lat <= north)
    return inside


def covered(geojson: str, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) which points lie in a shape, given as GeoJSON that is cut at 180 degrees."""
    shape = shapely.from_geojson(geojson)
    shapely.prepare(shape)
    inside: NDArray[np.bool_] = shapely.contains_xy(shape, lon, lat)
    return inside


def overlap(
    origin: Mapping[str, Any],
    lon: NDArray[np.float64],
    lat: NDArray[np.float64],
    shards_sha256: str = "",
    bounds_of: Callable[[str], Box] | None = None,
) -> dict[str, Any]:
    """How many of the points lie where a model was trained, as far as its record tells.

    Args:
      origin: of the model file. What it was trained on is `trained_on`, with `tiles`, `bounds` and `excluded`, or what
        a training of ours writes, `training.shards`, with `tiles` and `exclude`. Regions that were kept out have
        `name`, `bounds` and `geojson` each. Without the latter it is not known which points of the bounds were kept
        out: they count as inside.
      lon, lat: (N,) degrees, NaN where unknown.
      shards_sha256: of the set that the points are of: training on that very set is told.
      bounds_of: west, south, east, north of a tile; bounds are made of the tiles by it where the record has none.

    Returns:
      `points`, `placed` (with coordinates), `inside`, and `warning`, a sentence or None.
    """
    found: dict[str, Any] = {"points": len(lon), "placed": 0, "inside": None, "warning": None}
    training = origin.get("training") if isinstance(origin.get("training"), Mapping) else {}
    assert isinstance(training, Mapping)
    if origin.get("kind") == "untrained" or training.get("steps") == 0:
        return found | {"inside": 0}
    trained = origin.get("trained_on", training.get("shards"))
    if not isinstance(trained, Mapping):
        return found | {"warning": f"{NOT_SAID}: whether test points lie there cannot be told"}
    if shards_sha256 and trained.get("sha256") == shards_sha256:
        said = "it was trained on the records of this very set, without their labels"
        return found | {"inside": len(lon), "warning": f"{said}: the scores say nothing about other places"}
    placed = np.isfinite(lon) & np.isfinite(lat)
    found["placed"] = int(placed.sum())
    if not placed.any():
        return found | {"warning": "the set has no coordinates: whether it was trained on these pixels cannot be told"}
    tiles = [str(t) for t in trained.get("tiles") or ()]
    bounds = trained.get("bounds") or ([list(bounds_of(t)) for t in tiles] if bounds_of else None)
    if not bounds:
        return found | {"warning": f"{NOT_SAID} by its bounds: whether test points lie there cannot be told"}
    seen = within(bounds, lon[placed], lat[placed])
    doubtful: dict[str, NDArray[np.bool_]] = {}
    for region in _regions(trained.get("excluded", trained.get("exclude"))):
        if geojson := region.get("geojson"):
            seen &= ~covered(str(geojson), lon[placed], lat[placed])
        else:
            doubtful[str(region.get("name"))] = within(_boxes(region.get("bounds")), lon[placed], lat[placed])
    found["inside"] = int(seen.sum())
    if found["inside"]:
        where = f" ({', '.join(tiles[:3])}{', ..' if len(tiles) > 3 else ''})" if tiles else ""
        found["warning"] = (
            f"{found['inside']} of {len(lon)} test points lie in the regions that it was trained on{where}: "
            "the scores say nothing about places that it has not seen"
        )
        if names := [name for name, box in doubtful.items() if (seen & box).any()]:
            found["warning"] += f". Its record has the bounds alone of {', '.join(names)}, which it was kept out of"
    elif training.get("teacher_sha256"):  # what it learned from stood in none of its own records
        found["warning"] = "it learned from a teacher, and its record does not say where that one was trained"
    return found


def _regions(excluded: object) -> list[Mapping[str, Any]]:
    if isinstance(excluded, Mapping):
        return [excluded] if excluded else []
    return [r for r in excluded if isinstance(r, Mapping)] if isinstance(excluded, list | tuple) else []


def _boxes(bounds: object) -> list[Any]:
    if not isinstance(bounds, list | tuple) or not bounds:
        return []
    return list(bounds) if isinstance(bounds[0], list | tuple) else [bounds]
