from pipeline import words


def of_a_planet(tiles, failures=()):
    rows = [
        {
            "period": "2024", "tile": f"t{n:05d}", "state": state, "blocks_done": 1, "blocks_failed": 0,
            "embedded": 7, "revision": "12345678",
        }
        for n, state in enumerate(tiles)
    ]  # fmt: skip
    by_cause = {"hung": 1, "input": 2} if failures else {}
    return {
        "out": "out", "model": "m", "states": {}, "tiles": rows, "failures": list(failures), "warnings": [],
        "failed_by_cause": by_cause,
    }  # fmt: skip


def test_status_of_a_planet_names_the_tiles_with_which_something_is_to_be_done():
    text = words.status(of_a_planet(["published"] * 18_000 + ["failed", "missing"]))
    assert "t18000" in text and "t18001" in text and "t00000" not in text
    assert "2 of 18002 tiles are shown" in text
    assert len(text.splitlines()) < 10
    assert len(words.status(of_a_planet(["missing"] * 18_000)).splitlines()) < 210
    assert "t00000" in words.status(of_a_planet(["published"] * 3))


def test_status_counts_failed_blocks_by_their_causes():
    failed = {"tile": "t", "row_px": 0, "col_px": 0, "scene": "s", "band": "B04", "reason": "r", "command": "c"}
    assert "3 blocks failed (1 hung, 2 input)" in words.status(of_a_planet(["failed"], [failed] * 3))
