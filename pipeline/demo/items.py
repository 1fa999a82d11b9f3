"""Items: the STAC records of the synthetic planet, written as Earth Search and Planetary Computer write theirs.

Keys, names and oddities follow real items of both: no orbit state on Sentinel-2, MD5 sums without multihash on
Sentinel-1, dates of slices with a space in them.
"""

import dataclasses
import datetime as dt
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely

from pipeline.demo.passes import OpticalPass, RadarPass
from pipeline.demo.sensors import CENTRE_M, OFFSET_DN, S1_NODATA, TRUTH_EPSG, Codes, sun_elevation
from transforms.grid import PIXEL_M, TILE_PX, tile_of, to_lonlat

S2_COLLECTION = "sentinel-2-c1-l2a"
S1_COLLECTION = "sentinel-1-rtc"
COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"

# Key of the asset, title, common name, centre and width in micrometres, pixel in metres: Earth Search c1 items.
S2_ASSETS: dict[str, tuple[str, str, str, float, float, int]] = {
    "B04": ("red", "Red - 10m", "red", 0.665, 0.038, 10),
    "B03": ("green", "Green - 10m", "green", 0.56, 0.045, 10),
    "B02": ("blue", "Blue - 10m", "blue", 0.49, 0.098, 10),
    "B08": ("nir", "NIR 1 - 10m", "nir", 0.842, 0.145, 10),
    "B12": ("swir22", "SWIR 2.2μm - 20m", "swir22", 2.19, 0.242, 20),
    "B06": ("rededge2", "Red Edge 2 - 20m", "rededge", 0.74, 0.018, 20),
    "B07": ("rededge3", "Red Edge 3 - 20m", "rededge", 0.783, 0.028, 20),
    "B05": ("rededge1", "Red Edge 1 - 20m", "rededge", 0.704, 0.019, 20),
    "B11": ("swir16", "SWIR 1.6μm - 20m", "swir16", 1.61, 0.143, 20),
    "B8A": ("nir08", "NIR 2 - 20m", "nir08", 0.865, 0.033, 20),
    "SCL": ("scl", "Scene classification map (SCL)", "", 0.0, 0.0, 20),
}

_S2_EXTENSIONS = (
    "eo/v1.1.0",
    "file/v2.1.0",
    "grid/v1.1.0",
    "mgrs/v1.0.0",
    "projection/v1.1.0",
    "raster/v1.1.0",
    "sentinel-2/v1.0.0",
    "view/v1.0.0",
)
_S1_EXTENSIONS = ("sar/v1.0.0", "sat/v1.0.0", "projection/v1.1.0", "file/v2.0.0", "raster/v1.1.0")

# Percentages of a product's metadata, by scene class.
_SHARES = {
    1: "s2:saturated_defective_pixel_percentage",
    2: "s2:dark_features_percentage",
    3: "s2:cloud_shadow_percentage",
    4: "s2:vegetation_percentage",
    5: "s2:not_vegetated_percentage",
    6: "s2:water_percentage",
    7: "s2:unclassified_percentage",
    8: "s2:medium_proba_clouds_percentage",
    9: "s2:high_proba_clouds_percentage",
    10: "s2:thin_cirrus_percentage",
    11: "s2:snow_ice_percentage",
}


@dataclasses.dataclass(frozen=True)
class Frame:
    """The grid of a Sentinel-1 file.

    Attributes:
      epsg: of the scene's zone. left_m, top_m: corner, multiples of 10 m. height_px, width_px: at 10 m.
    """

    epsg: int
    left_m: int
    top_m: int
    height_px: int
    width_px: int


def s2_id(tile: str, visit: OpticalPass) -> str:
    """As Earth Search c1 has it: platform, tile, start of the datastrip."""
    return f"S2{visit.platform.upper()}_T{tile}_{_compact(_strip(visit))}_L2A"


def s1_id(scene: RadarPass) -> str:
    """As Planetary Computer has it: the GRD product's name, then `_rtc`."""
    end = scene.start + dt.timedelta(seconds=25)
    orbit = _absolute_orbit(scene.start, 98.74)
    datatake = f"{(orbit * 7 + scene.relative_orbit) % 2**24:06X}"
    name = f"S1{scene.platform.upper()}_IW_GRDH_1SDV_{_compact(scene.start)}_{_compact(end)}"
    return f"{name}_{orbit:06d}_{datatake}_rtc"


def _strip(visit: OpticalPass) -> dt.datetime:
    return visit.datatake + dt.timedelta(seconds=visit.strip_s)


def _compact(when: dt.datetime) -> str:
    return when.strftime("%Y%m%dT%H%M%S")


def _iso(when: dt.datetime, digits: int = 6) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond:06d}"[:digits] + "Z"


def _absolute_orbit(when: dt.datetime, minutes: float) -> int:
    """Revolutions since the start of 2014; the count of a satellite that never was needs no more."""
    return int((when - dt.datetime(2014, 1, 1, tzinfo=dt.UTC)).total_seconds() / 60 / minutes)


def seen_at(tile: str, visit: OpticalPass) -> dt.datetime:
    """When the product's tile was seen: tiles further south come later."""
    along_s = (5_100_000 - tile_of(tile).top_m) / 6_800 + (0.35 if tile.startswith("33") else 0.0)
    return visit.datatake + dt.timedelta(seconds=visit.strip_s + 190.024 + along_s)


def lonlat_shape(reach: shapely.Geometry) -> shapely.Polygon:
    """A shape in metres from the centre, in longitude and latitude, to 1e-6 degrees (11 cm), counter-clockwise."""
    corners = shapely.get_coordinates(shapely.orient_polygons(reach))
    lon, lat = to_lonlat(CENTRE_M[0] + corners[:, 0], CENTRE_M[1] + corners[:, 1], f"EPSG:{TRUTH_EPSG}")
    return shapely.Polygon(np.round(np.stack([lon, lat], axis=1), 6))


def _record(
    id_: str, collection: str, reach: shapely.Geometry, extensions: Sequence[str], properties: Mapping[str, Any]
) -> dict[str, Any]:
    shape = lonlat_shape(reach)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": id_,
        "properties": dict(properties),
        "geometry": {"type": "Polygon", "coordinates": [[list(point) for point in shape.exterior.coords]]},
        "links": [
            {"rel": "collection", "type": "application/json", "href": "../collection.json"},
            {"rel": "parent", "type": "application/json", "href": "../collection.json"},
            {"rel": "root", "type": "application/json", "href": "../../catalog.json"},
        ],
        "assets": {},
        "bbox": list(shape.bounds),
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in extensions],
        "collection": collection,
    }


def s2_item(
    tile: str, visit: OpticalPass, reach: shapely.Geometry, scl: Codes, files: Mapping[str, bytes]
) -> dict[str, Any]:
    """The item of one Sentinel-2 product.

    Args:
      reach: what it shows, in metres from the island's centre.
      scl: (h, w) uint8, its scene classes at 20 m over the island; everything else in the tile is nodata.
      files: their bytes by band; the href of an asset is `<band>.tif` beside the item.
    """
    where = tile_of(tile)
    seen, strip = seen_at(tile, visit), _strip(visit)
    baseline = visit.baseline.replace(".", "")
    orbit = _absolute_orbit(visit.datatake, 100.6)
    sat = f"S2{visit.platform.upper()}"
    start, made = _compact(visit.datatake), _compact(visit.generated)
    counts = np.bincount(scl.ravel(), minlength=12)
    observed = max(1, int(counts[1:].sum()))
    shares = {name: round(100 * int(counts[code]) / observed, 6) for code, name in _SHARES.items()}
    height = sun_elevation(visit.datatake)
    lon, lat = to_lonlat([where.left_m + 54_900], [where.top_m - 54_900], where.crs)
    properties: dict[str, Any] = {
        "created": _iso(visit.generated + dt.timedelta(hours=3), 3),
        "platform": f"sentinel-2{visit.platform}",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "eo:cloud_cover": round(100 * int(counts[8:11].sum()) / observed, 6),
        "proj:epsg": where.epsg,
        "proj:centroid": {"lat": round(float(lat[0]), 5), "lon": round(float(lon[0]), 5)},
        "mgrs:utm_zone": int(tile[:2]),
        "mgrs:latitude_band": tile[2],
        "mgrs:grid_square": tile[3:],
        "grid:code": f"MGRS-{tile}",
        "view:azimuth": 105.0 if visit.orbit == 22 else 287.0,
        "view:incidence_angle": 9.4,
        "view:sun_azimuth": round(168 - 0.3 * height, 6),
        "view:sun_elevation": round(height, 6),
        "s2:tile_id": f"{sat}_OPER_MSI_L2A_TL_2APS_{made}_A{orbit:06d}_T{tile}_N{visit.baseline}",
        "s2:degraded_msi_data_percentage": 0,
        "s2:nodata_pixel_percentage": round(100 * (1 - observed / (TILE_PX // 2) ** 2), 6),
        **shares,
        "s2:product_type": "S2MSI2A",
        "s2:processing_baseline": visit.baseline,
        "s2:product_uri": f"{sat}_MSIL2A_{start}_N{baseline}_R{visit.orbit:03d}_T{tile}_{made}.SAFE",
        "s2:generation_time": _iso(visit.generated),
        "s2:datatake_id": f"G{sat}_{start}_{orbit:06d}_N{visit.baseline}",
        "s2:datatake_type": "INS-NOBS",
        "s2:datastrip_id": f"{sat}_OPER_MSI_L2A_DS_2APS_{made}_S{_compact(strip)}_N{visit.baseline}",
        "s2:reflectance_conversion_factor": round(
            1 + 0.0334 * math.cos(2 * math.pi * (visit.datatake.timetuple().tm_yday - 3) / 365.25), 9
        ),
        "datetime": _iso(seen),
        "updated": _iso(visit.generated + dt.timedelta(hours=3), 3),
    }
    item = _record(s2_id(tile, visit), S2_COLLECTION, reach, _S2_EXTENSIONS, properties)
    for band, (key, title, common, centre, width, pixel_m) in S2_ASSETS.items():
        side = TILE_PX * PIXEL_M // pixel_m
        raster: dict[str, Any] = {
            "nodata": 0,
            "data_type": "uint8" if band == "SCL" else "uint16",
            "spatial_resolution": pixel_m,
        }
        asset: dict[str, Any] = {"href": f"./{band}.tif", "type": COG_TYPE, "title": title}
        if band != "SCL":
            raster |= {"scale": 0.0001, "offset": -OFFSET_DN / 10_000}
            asset["eo:bands"] = [
                {"name": band, "common_name": common, "center_wavelength": centre, "full_width_half_max": width}
            ]
        item["assets"][key] = asset | {
            "gsd": pixel_m,
            "proj:shape": [side, side],
            "proj:transform": [pixel_m, 0, where.left_m, 0, -pixel_m, where.top_m],
            "raster:bands": [raster],
            "file:checksum": "1220" + hashlib.sha256(files[band]).hexdigest(),  # multihash: sha2-256, 32 bytes
            "file:size": len(files[band]),
            "roles": ["data"] if band == "SCL" else ["data", "reflectance"],
        }
    return item


def s1_item(scene: RadarPass, reach: shapely.Geometry, frame: Frame, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The item of one Sentinel-1 scene; `files` has the bytes of `iw-vv.rtc.tiff` and `iw-vh.rtc.tiff` as vv and vh."""
    end = scene.start + dt.timedelta(seconds=25)
    middle = scene.start + (end - scene.start) / 2
    right, bottom = frame.left_m + 10 * frame.width_px, frame.top_m - 10 * frame.height_px
    orbit = _absolute_orbit(scene.start, 98.74)
    properties: dict[str, Any] = {
        "datetime": _iso(middle),
        "platform": f"SENTINEL-1{scene.platform.upper()}",
        "s1:shape": [frame.width_px, frame.height_px],
        "proj:bbox": [float(frame.left_m), float(bottom), float(right), float(frame.top_m)],
        "proj:epsg": frame.epsg,
        "proj:shape": [frame.height_px, frame.width_px],
        "end_datetime": f"{end:%Y-%m-%d %H:%M:%S.%f}+00:00",
        "constellation": "Sentinel-1",
        "s1:resolution": "high",
        "proj:transform": [10.0, 0.0, float(frame.left_m), 0.0, -10.0, float(frame.top_m), 0.0, 0.0, 1.0],
        "s1:datatake_id": str((orbit * 7 + scene.relative_orbit) % 2**24),
        "start_datetime": f"{scene.start:%Y-%m-%d %H:%M:%S.%f}+00:00",
        "s1:orbit_source": "RESORB",
        "s1:slice_number": {"": "5", "south": "4", "north": "5"}[scene.part],
        "s1:total_slices": "17",
        "sar:looks_range": 5,
        "sat:orbit_state": scene.orbit_state,
        "sar:product_type": "GRD",
        "sar:looks_azimuth": 1,
        "sar:polarizations": ["VV", "VH"],
        "sar:frequency_band": "C",
        "sat:absolute_orbit": orbit,
        "sat:relative_orbit": scene.relative_orbit,
        "s1:processing_level": "1",
        "sar:instrument_mode": "IW",
        "sar:center_frequency": 5.405,
        "sar:resolution_range": 20,
        "s1:product_timeliness": "Fast-24h",
        "sar:resolution_azimuth": 22,
        "sar:pixel_spacing_range": 10,
        "sar:observation_direction": "right",
        "sar:pixel_spacing_azimuth": 10,
        "sar:looks_equivalent_number": 4.4,
        "s1:instrument_configuration_ID": "7",
        "sat:platform_international_designator": "2014-016A" if scene.platform == "a" else "2024-228A",
    }
    item = _record(s1_id(scene), S1_COLLECTION, reach, _S1_EXTENSIONS, properties)
    for key, second in (("vh", "horizontal"), ("vv", "vertical")):
        item["assets"][key] = {
            "href": f"./iw-{key}.rtc.tiff",
            "file:size": len(files[key]),
            "file:checksum": hashlib.md5(files[key], usedforsecurity=False).hexdigest(),
            "type": COG_TYPE,
            "roles": ["data"],
            "title": f"{key.upper()}: vertical transmit, {second} receive",
            "description": "Terrain-corrected gamma naught values of signal transmitted with vertical polarization and "
            f"received with {second} polarization with radiometric terrain correction applied.",
            "raster:bands": [{"nodata": int(S1_NODATA), "data_type": "float32", "spatial_resolution": 10.0}],
        }
    return item


def collection(id_: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The collection of these items, each in a folder of its own name beside it."""
    titles = {
        S2_COLLECTION: "Sentinel-2 Collection 1 Level-2A",
        S1_COLLECTION: "Sentinel 1 Radiometrically Terrain Corrected",
    }
    boxes = np.array([r["bbox"] for r in records])
    times = sorted(r["properties"]["datetime"] for r in records)
    return {
        "type": "Collection",
        "id": id_,
        "stac_version": "1.0.0",
        "title": titles[id_] + " (synthetic)",
        "description": "Made by tessera-beam from a landscape that does not exist, in the form of the real collection.",
        "license": "Apache-2.0",
        "extent": {
            "spatial": {"bbox": [[*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]]},
            "temporal": {"interval": [[times[0], times[-1]]]},
        },
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../catalog.json", "type": "application/json"},
            *({"rel": "item", "href": f"./{r['id']}/{r['id']}.json", "type": "application/geo+json"} for r in records),
        ],
    }


def catalog(collections: Sequence[str]) -> dict[str, Any]:
    """The root: collections in folders of their own names."""
    return {
        "type": "Catalog",
        "id": "synthetic-planet",
        "stac_version": "1.0.0",
        "title": "The synthetic planet of tessera-beam",
        "description": "An island at 12.5 E, 45.1 N in two UTM zones, seen by Sentinel-1 and Sentinel-2 for two years.",
        "links": [
            {"rel": "root", "href": "./catalog.json", "type": "application/json"},
            *({"rel": "child", "href": f"./{c}/collection.json", "type": "application/json"} for c in collections),
        ],
    }
