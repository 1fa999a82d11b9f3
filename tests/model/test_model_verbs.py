import json
import sys
from pathlib import Path

import pytest
from gate_files import SHIPPED

from model.errors import BadInput
from pipeline.demo.untrained import SIZES, random_weights, untrained_profile
from pipeline.model import export_model, gate_model, import_model, show_model


@pytest.fixture
def checkpoints(tmp_path):
    """A published checkpoint and one of ours, of the same weights."""
    from model.checkpoints import Checkpoint, Record, args_of, save_v2

    weights = random_weights(SIZES, 4)
    save_v2(tmp_path / "published.pt", Checkpoint(weights, SIZES, args_of(SIZES)))
    record = Record("meadow", untrained_profile(), {"steps": 0})
    save_v2(tmp_path / "ours.pt", Checkpoint(weights, SIZES, args_of(SIZES), record=record))
    return tmp_path


def test_import_makes_a_model_that_says_where_it_came_from(checkpoints):
    made = import_model(checkpoints / "published.pt", "v2", checkpoints / "m.onnx")
    assert made == show_model(checkpoints / "m.onnx")
    assert made["name"] == f"v2-{made['weights_sha256'][:8]}"
    assert (made["origin"]["kind"], made["origin"]["file_name"]) == ("import", "published.pt")
    assert json.loads(json.dumps(made)) == made


def test_export_takes_name_profile_and_training_from_our_checkpoint(checkpoints):
    made = export_model(checkpoints / "ours.pt", checkpoints / "m.onnx")
    assert made["name"].startswith("meadow-")
    assert made["profile"]["name"] == "untrained"
    assert made["origin"]["training"] == {"steps": 0}


def test_each_verb_names_the_other_for_the_other_kind_of_checkpoint(checkpoints):
    with pytest.raises(BadInput, match=r"use `tessera-beam model export .*ours.pt"):
        import_model(checkpoints / "ours.pt", "v2", checkpoints / "m.onnx")
    with pytest.raises(BadInput, match=r"use `tessera-beam model import .*published.pt --family v2"):
        export_model(checkpoints / "published.pt", checkpoints / "m.onnx")


def test_an_unknown_family_is_refused_before_anything_is_read():
    with pytest.raises(BadInput, match="family 'v9'"):
        import_model("nowhere.pt", "v9", "m.onnx")


@pytest.mark.parametrize("verb", [lambda: import_model("c.pt", "v2", "m.onnx"), lambda: export_model("c.pt", "m.onnx")])
def test_without_pytorch_both_say_how_to_get_it(monkeypatch, verb):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BadInput, match=r"pip install 'tessera-beam\[train\]'"):
        verb()


def test_show_tells_people_and_programs():
    shown = show_model(SHIPPED)
    assert shown["name"] in shown["text"]
    assert shown["dims"] == 128
    assert json.loads(json.dumps(shown))["origin"]["kind"] == "training"


def test_gate_gives_json_a_verdict_and_a_page(tmp_path):
    found, ok = gate_model(SHIPPED, report_html=tmp_path / "gate.html")
    assert ok
    assert found["ok"]
    assert json.loads(json.dumps(found))["checks"] == found["checks"]
    assert sum(found["errors"]["counts"]) > 10_000
    page = (tmp_path / "gate.html").read_text(encoding="utf-8")
    assert page.count("<tr>") == len(found["checks"]) + 1
    assert page.count("<rect") == len(found["errors"]["counts"]) + len(found["code_steps"])
    assert "http" not in page


def test_a_page_that_cannot_be_written_is_refused_before_the_checks(tmp_path):
    with pytest.raises(BadInput, match="give a file in a folder that exists"):
        gate_model(Path("no.onnx"), report_html=tmp_path / "gone" / "gate.html")
