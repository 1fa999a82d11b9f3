import dataclasses

from earth_search_items import NOW, YEAR

from pipeline.demo.api import serve
from pipeline.demo.passes import OVERCAST
from pipeline.inventory import build
from transforms.inventory import read_tile


def test_the_planets_scenes_are_taken_as_its_truth_says(planet, tmp_path):
    said = build([(str(planet.folder), None)], YEAR, planet.tiles, tmp_path / "i.parquet", now=NOW)
    assert said["dropped"] == {"cloud cover": 3, "duplicate": 3} and not said["ignored"]
    for tile in planet.tiles:
        scenes = {s.id: s for s in read_tile(tmp_path / "i.parquet", tile)}
        visits = {i: v for i, v in planet.s2_ids(tile).items() if v.datatake.year == 2024}
        assert {i for i, s in scenes.items() if s.sensor == "S2"} == set(visits)
        for scene_id, visit in visits.items():
            scene = scenes[scene_id]
            assert scene.kept == (not visit.bias_dn and visit.datatake.date() != OVERCAST)
            assert scene.offset_dn == planet.offset_dn(scene_id)
            assert (scene.baseline, scene.relative_orbit) == (visit.baseline, visit.orbit)
        passes = {i: p for i, p in planet.s1_ids().items() if p.start.year == 2024}
        assert {i: scenes[i].orbit for i in passes} == {i: p.orbit_state for i, p in passes.items()}
        assert {scenes[i].asset("VV").epsg for i in passes} == {32632, 32633}
        for asset in (a for s in scenes.values() for a in s.assets):
            assert (planet.folder / asset.href).stat().st_size == asset.size_bytes


def test_the_planets_api_and_its_static_catalogue_give_the_same_scenes_and_decisions(planet, tmp_path):
    folder = build([(str(planet.folder), None)], YEAR, planet.tiles, tmp_path / "f.parquet", now=NOW)
    with serve(planet.folder) as url:
        served = build([(url, None)], YEAR, planet.tiles, tmp_path / "a.parquet", now=NOW)
    same = ("tiles", "dropped", "warnings", "period", "frozen")
    assert {k: served[k] for k in same} == {k: folder[k] for k in same}
    for tile in planet.tiles:
        from_folder = [under(s, "files/") for s in read_tile(tmp_path / "f.parquet", tile)]
        assert read_tile(tmp_path / "a.parquet", tile) == from_folder
    with serve(planet.folder) as url:  # on another port, a month's pages in another order or not
        assert build([(url, None)], YEAR, planet.tiles, tmp_path / "b.parquet")["digest"] == served["digest"]


def under(scene, prefix):
    return dataclasses.replace(scene, assets=tuple(dataclasses.replace(a, href=prefix + a.href) for a in scene.assets))
