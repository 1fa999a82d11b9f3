"""A full tile is published within its memory and read in few requests, as `bench/full_tile.py` measures it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench/full_tile.py"


@pytest.mark.long
@pytest.mark.slow  # `make full-tile` does it with overviews too, which takes minutes
def test_a_full_tile_is_published_in_500_mb_and_a_window_read_in_four_requests(tmp_path):
    argv = [sys.executable, str(SCRIPT), "--json", "--check", "--folder-alone", "--folder", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["place"]: row for row in json.loads(done.stdout)["full_tile"]}
    assert rows["folder"]["peak_mb"] <= 500 and all(rows["folder"]["checks"].values())
    ours, default = rows["http, ours options"], rows["http, default options"]
    assert ours["requests"] <= 4 < default["requests"] and ours["checks"]["window"]
