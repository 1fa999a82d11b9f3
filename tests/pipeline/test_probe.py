import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from small_encoders import SMALL, tensors_of

from model.errors import BadInput
from model.families import profile_for
from model.modelfile import open_model
from model.probing import invariance, table
from model.probing.labels import CLASSIFICATION, REGRESSION, SEGMENTATION, Labels, write_labels
from model.quantise import dequantise, quantise
from model.shards import open_shards, write_set
from pipeline.cli_train import app
from pipeline.demo.run import model_path
from pipeline.embed_folder import embed_dpixels
from pipeline.probe_embed import RecordEncoder, prefix
from pipeline.probing import probe
from transforms import dpixels
from transforms.dpixels import DPixels

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from records_made import records

FEW = {"seeds": 2, "shares": (0.3, 1.0), "shots": (2,), "names": ("knn5",), "dims": ()}
MORE = FEW | {"names": ("knn5", "linear"), "dims": (32, 128)}
QUICK = ("chance", "monthly")


def labelled(folder, made, task=CLASSIFICATION, **change):
    """A probe set of records whose class is the month of their peak."""
    n = len(made.tile)
    write_set(folder, [made], profile_name="v2", period="2024", origin={}, shard_records=40)
    label = np.array(["early", "middle", "late"])[np.arange(n) % 3]
    values = {
        "label": np.arange(n) % 3 * 10.0 if task == REGRESSION else label,
        "group": np.array([f"g{i // 3}" for i in range(n)]),
    }
    if task == SEGMENTATION:
        patch = np.arange(n) // 16
        values |= {
            "group": np.char.add("g", patch.astype(str)), "patch": np.char.add("p", patch.astype(str)),
            "row": (np.arange(n) % 16 // 4).astype(np.int32), "col": (np.arange(n) % 4).astype(np.int32),
            "label": np.array(["a", "b"])[(np.arange(n) % 3 == 0).astype(int)],
        }  # fmt: skip
    write_labels(folder, Labels("made up", task, np.arange(n), lon=made.lon, lat=made.lat, **values | change))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return labelled(tmp_path_factory.mktemp("probe") / "set", records(90, valid=0.9))


@pytest.fixture(scope="module")
def result(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    other = out / "other.npy"
    np.save(other, np.random.default_rng(1).normal(size=(90, 7)))
    return probe(folder, [model_path()], sources=(*QUICK, "pca", "harmonic"), fuse=[other], out=out / "o", **MORE), out


def scores(result, **where):
    return [s for s in result["scores"] if all(s[k] == v for k, v in where.items())]


def test_records_have_the_embedding_that_a_map_of_them_has(tmp_path):
    """One pixel a folder of d-pixels, through the verb that embeds those."""
    made = records(6, seed=4, passes=(2, 9))
    shards = write_set(tmp_path / "s", [made], profile_name="v2", period="2024", origin={})
    model = open_model(model_path())
    got = RecordEncoder(model).embed(shards, np.arange(6))
    for i in range(6):
        a, b = made.s2_offsets[i : i + 2]
        c, d = made.s1_offsets[i : i + 2]
        up = made.s1_orbit[c:d] == 0
        one = DPixels(
            made.s2[a:b, None, None], made.s2_valid[a:b, None, None].astype(np.uint8),
            made.s2_doy[a:b].astype(np.uint16),
            made.s1[c:d][up][:, None, None], made.s1_doy[c:d][up],
            made.s1[c:d][~up][:, None, None], made.s1_doy[c:d][~up],
        )  # fmt: skip
        dpixels.save(one, tmp_path / f"p{i}")
        told = embed_dpixels(str(tmp_path / f"p{i}"), model_path(), str(tmp_path / "o"), "cpu", lambda _: None)
        map_ = dequantise(np.load(told["codes"]), np.load(told["scales"]))[0, 0]
        # Of another batch size: a float's last bit may move a code by one step.
        np.testing.assert_allclose(got.stored[i], map_, atol=1.01 * np.load(told["scales"])[0, 0])
        assert (got.stored[i] == map_).mean() > 0.95


def test_a_record_without_an_optical_date_has_no_embedding(tmp_path):
    made = records(5)
    made.s2_valid[made.s2_offsets[2] : made.s2_offsets[3]] = False
    shards = write_set(tmp_path / "s", [made], profile_name="v2", period="2024", origin={})
    got = RecordEncoder(open_model(model_path())).embed(shards, np.arange(5))
    assert np.isnan(got.stored[2]).all() and np.isnan(got.values[2]).all()
    assert np.isfinite(np.delete(got.stored, 2, axis=0)).all()


def test_prefixes_are_quantised_by_a_scale_of_their_own(folder):
    model = open_model(model_path())
    shards = open_shards(folder)
    made = RecordEncoder(model).embed(shards, np.arange(20))
    assert prefix(made, model, model.dims, True) is made.stored
    np.testing.assert_array_equal(prefix(made, model, 16, False), made.values[:, :16])
    np.testing.assert_array_equal(prefix(made, model, 16, True), dequantise(*quantise(made.values[:, :16])))
    np.testing.assert_array_equal(made.stored, dequantise(*quantise(made.values)))


def test_a_probe_has_every_source_head_budget_and_metric(result):
    found, _ = result
    names = {s["source"] for s in found["scores"]}
    model = open_model(model_path()).name
    assert names == {
        model, "other", f"{model} + other", "chance", "monthly composites", "harmonic fit", "PCA of the series",
    }  # fmt: skip
    for name in names:
        assert {(s["head"], s["budget"]) for s in scores(found, source=name, metric="macro_f1")} == {
            (h, b) for h in ("knn5", "linear") for b in ("30 %", "100 %", "2-shot")
        }
    assert found["classes"] == {"early": 30, "late": 30, "middle": 30}
    assert json.loads(json.dumps(found)) == found


def test_seasons_are_told_apart_by_composites_and_not_by_noise(result):
    found, _ = result
    best = {n: scores(found, source=n, head="linear", budget="100 %", metric="macro_f1")[0]["mean"]
            for n in ("monthly composites", "other", "chance")}  # fmt: skip
    assert best["monthly composites"] > 0.9
    assert best["other"] < 0.6 and best["chance"] < 0.4


def test_prefixes_are_compared_before_and_after_quantisation(result):
    found, _ = result
    dims = {(d["dims"], d["precision"], d["budget"]) for d in found["dims"]}
    assert dims == {(n, p, "100 %") for n in (32, open_model(model_path()).dims) for p in ("fp32", "int8")}


def test_the_result_and_its_pictures_are_written(result):
    found, out = result
    assert json.loads((out / "o/probe.json").read_text())["name"] == "made up"
    for name in ("labels.png", "dims.png", "invariance.png"):
        assert (out / "o" / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [Path(p).name for p in found["pictures"]] == ["labels.png", "dims.png", "invariance.png"]


def test_the_table_names_all_of_it(result):
    found, _ = result
    text = table.text(found)
    for words in ("macro-F1", "five nearest neighbours", "monthly composites", "2-shot", "disjoint halves", "masked"):
        assert words in text
    assert max(len(line) for line in text.splitlines()) < 200


def test_shots_alone_make_no_curve_and_lose_no_result(folder, tmp_path):
    found = probe(folder, [], sources=QUICK, out=tmp_path / "o", **FEW | {"shares": ()})
    assert found["pictures"] == [] and {s["budget"] for s in found["scores"]} == {"2-shot"}
    assert json.loads((tmp_path / "o/probe.json").read_text())["scores"] == found["scores"]


def test_fuse_files_must_have_a_row_a_record(folder, tmp_path):
    np.save(tmp_path / "short.npy", np.zeros((3, 2)))
    with pytest.raises(BadInput, match="3 rows, and the set has 90"):
        probe(folder, [], fuse=[tmp_path / "short.npy"], sources=(), **FEW)


def test_records_that_one_source_lacks_are_left_out_for_all(folder, tmp_path):
    x = np.random.default_rng(1).normal(size=(90, 3))
    x[:6] = np.nan
    np.save(tmp_path / "some.npy", x)
    found = probe(folder, [], fuse=[tmp_path / "some.npy"], sources=("chance",), **FEW)
    assert found["labels"] == 84 and "6 records" in found["skipped"]


def test_the_untrained_encoder_is_made_of_the_models_sizes_and_compared_pair_by_pair(folder):
    pytest.importorskip("torch")
    found = probe(
        folder, [model_path()], sources=("untrained",), invariant=False, **FEW | {"names": ("knn5", "linear")}
    )
    assert {s["source"] for s in found["scores"]} == {open_model(model_path()).name, "untrained encoder"}
    gaps = {(d["head"], d["budget"]): d for d in found["differences"]}
    assert set(gaps) == {(h, b) for h in ("knn5", "linear") for b in ("30 %", "100 %", "2-shot", "mean of shares")}
    mean = {
        n: np.mean([s["mean"] for s in scores(found, source=n, head="linear", metric="macro_f1") if s["share"]])
        for n in ("untrained encoder", open_model(model_path()).name)
    }
    wanted = mean[open_model(model_path()).name] - mean["untrained encoder"]
    assert gaps["linear", "mean of shares"]["mean"] == pytest.approx(wanted, abs=1e-5)


def test_a_model_beside_itself_as_the_untrained_one_is_no_better(folder):
    found = probe(folder, [model_path()], sources=("untrained",), untrained=[model_path()], invariant=False, **FEW)
    assert {d["mean"] for d in found["differences"]} == {0.0}


@pytest.mark.parametrize("family", ["v1.0-early", "v1.1-mpc", "v2"])
def test_radar_that_is_removed_is_seen_by_no_family(family, tmp_path):
    """v1.0 takes all steps of a radar that has no valid one: those that are removed must not be among them."""
    pytest.importorskip("torch")
    from model.checkpoints import Checkpoint, args_of
    from model.export import export

    sizes, profile = SMALL[family], profile_for(family, SMALL[family].native_dims)
    file = export(Checkpoint(tensors_of(sizes), sizes, args_of(sizes)), profile, "m", {}, tmp_path / "m.onnx")
    made = records(12, passes=(2, 9))
    shards = write_set(tmp_path / "s", [made], profile_name="v2", period="2024", origin={})
    none = dataclasses.replace(
        made, s1_offsets=0 * made.s1_offsets, s1=made.s1[:0], s1_valid=made.s1_valid[:0],
        s1_orbit=made.s1_orbit[:0], s1_doy=made.s1_doy[:0],
    )  # fmt: skip
    never = write_set(tmp_path / "n", [none], profile_name="v2", period="2024", origin={})
    encode, index = RecordEncoder(file).stored, np.arange(12)
    got = encode(invariance.without_radar(shards.take(index)))
    np.testing.assert_array_equal(got, encode(never.take(index)))
    assert (got != encode(shards.take(index))).any(1).all()


def test_presto_is_left_out_with_its_reason_where_there_are_no_weights(folder):
    found = probe(folder, [], sources=("presto", "chance"), **FEW)
    assert "--presto" in found["skipped"]["Presto"]


def test_a_regression_is_probed_on_the_sets_own_split(tmp_path):
    made = records(90, valid=0.9)
    test = np.arange(90) // 3 % 4 == 0
    folder = labelled(tmp_path / "set", made, REGRESSION, test=test)
    found = probe(folder, [], sources=QUICK, **FEW | {"names": ("linear",)})
    assert found["metric"] == "rmse" and found["split"] == "the set's own split"
    rmse = {s["source"]: s for s in scores(found, head="linear", budget="100 %", metric="rmse")}
    assert rmse["monthly composites"]["mean"] < 4 < rmse["chance"]["mean"]
    assert rmse["chance"]["test"] == test.sum()


def test_a_segmentation_is_probed_in_patches(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from model.probing import segmentation

    monkeypatch.setattr(segmentation, "STEPS", 4)
    monkeypatch.setattr(segmentation, "WIDTH", 8)
    folder = labelled(tmp_path / "set", records(160, valid=0.9), SEGMENTATION)
    found = probe(folder, [model_path()], sources=QUICK, invariant=False, **FEW | {"names": (), "seeds": 1})
    assert {s["head"] for s in found["scores"]} == {"unet", "linear"} and found["metric"] == "mean_iou"


def test_test_points_inside_the_trained_regions_are_a_warning(folder, monkeypatch):
    from pipeline import probing

    trained = {"tiles": ["33TWN"], "bounds": [[14.9, 44.9, 15.5, 45.5]], "excluded": {}}

    def opened(path):
        return dataclasses.replace(open_model(path), origin={"kind": "training", "trained_on": trained})

    monkeypatch.setattr(probing, "open_model", opened)
    found = probe(folder, [model_path()], sources=("chance",), invariant=False, **FEW)
    inside = found["regions"][open_model(model_path()).name]["inside"]
    assert 0 < inside < 90 and f"{inside} of 90 test points" in found["warnings"][0]


def test_a_probe_asks_the_model_file_and_never_torch(folder, monkeypatch):
    asked = []
    run = onnxruntime.InferenceSession.run

    def counted(self, *rest):
        asked.append(1)
        return run(self, *rest)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counted)
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it fails from here on
    probe(folder, [model_path()], sources=QUICK, invariant=False, **FEW)
    assert asked


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sources": ("oracle",)}, "source 'oracle'"),
        ({"names": ("unet",)}, "head 'unet' for a classification"),
        ({"seeds": 0}, "0 seeds"),
        ({"shares": (2.0,)}, "share of 2.0"),
        ({"models": [model_path(), model_path()]}, "one name"),
        ({"models": [], "sources": ()}, "nothing to probe"),
        ({"presto": "no.pt", "sources": ("presto",)}, "no weights of Presto"),
    ],
)
def test_what_cannot_be_probed_is_refused(folder, change, words):
    arguments = {"models": [], "sources": QUICK, **FEW, **change}
    with pytest.raises(BadInput, match=words):
        probe(folder, **arguments)


def test_a_folder_without_shards_or_labels_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        probe(tmp_path, [])
    write_set(tmp_path / "s", [records(3)], profile_name="v2", period="2024", origin={})
    with pytest.raises(BadInput, match=r"no labels\.parquet"):
        probe(tmp_path / "s", [])


@pytest.mark.parametrize(
    ("option", "given"),
    [("--seeds", "0"), ("--shots", "0"), ("--dims", "0,16"), ("--dims", "1.5"), ("--shares", "0,30"),
     ("--shares", "200"), ("--presto", "no.pt")],
)  # fmt: skip
def test_an_option_out_of_range_is_refused_by_name_before_anything_is_opened(option, given):
    with pytest.raises(BadInput, match=f"^{option} {given}: "):
        app(["probe", "no-set", option, given], standalone_mode=False)


def test_a_prefix_that_no_model_has_is_said_to_be_left_out(folder):
    found = probe(folder, [model_path()], sources=("chance",), invariant=False, **{**FEW, "dims": (999,)})
    assert found["skipped"]["999 values"] == "no model has so many"


def test_the_command_prints_a_table_or_json(folder, capsys):
    words = ["probe", str(folder), "--model", model_path(), "--sources", "chance,monthly", "--heads", "knn5",
             "--shares", "30,100", "--shots", "2", "--seeds", "2", "--dims", "16"]  # fmt: skip
    app(words, standalone_mode=False)
    said = capsys.readouterr()
    assert "macro-F1" in said.out and "monthly composites" in said.out and "embedding 90 records" in said.err
    app([*words, "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["task"] == "classification"
    with pytest.raises(BadInput, match="--shares a,b"):
        app(["probe", str(folder), "--shares", "a,b"], standalone_mode=False)
