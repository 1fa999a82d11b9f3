"""How the benches tell what they found."""

import importlib.util
import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def tell():
    spec = importlib.util.spec_from_file_location("table", Path(__file__).parents[1] / "bench/table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tell


ROWS = [
    {"engine": "ours", "seconds": 1.23456, "peak_mb": 1234.5, "equal": True},
    {"engine": "a peer", "seconds": "not measured: it is not installed", "floor": None, "left": 1},
]


def test_a_table_has_its_columns_one_under_another_and_says_what_was_not_measured(tell, capsys):
    tell("writing", ROWS, ("engine", "seconds", "peak_mb", "equal", "floor"), False)
    assert capsys.readouterr().out.splitlines() == [
        "engine  seconds                            peak_mb  equal  floor",
        "ours    1.235                              1,234    True",
        "a peer  not measured: it is not installed",
    ]


def test_one_json_object_has_all_that_was_found(tell, capsys):
    tell("writing", ROWS, ("engine",), True, bandwidth=5)
    assert json.loads(capsys.readouterr().out) == {"bandwidth": 5, "writing": ROWS}
