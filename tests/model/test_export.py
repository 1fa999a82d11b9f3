import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_encoders import SMALL, family_of_case, tensors_of

from model import parity
from model.checkpoints import Checkpoint, args_of, load_checkpoint
from model.encoders import encoder_of
from model.errors import BadInput, NotProven
from model.export import check_out, export, run_torch
from model.families import names, profile_for
from model.limits import LIMITS
from model.modelfile import INPUTS, name_of, open_model
from model.quantise import quantise
from model.variant import variant_of
from model.weights import EncoderSizes
from pipeline.demo import untrained
from transforms.stac import item_id

GOLDEN = Path(__file__).parents[2] / "../shared/golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not here")
SIZES = [
    EncoderSizes(width=16, layers=2, heads=2, feed_forward=24, hidden=20, native_dims=12, qk_norm=False),
    EncoderSizes(width=24, layers=1, heads=3, feed_forward=8, hidden=12, native_dims=10, qk_norm=True),
    EncoderSizes(width=8, layers=1, heads=1, feed_forward=8, hidden=16, native_dims=128, qk_norm=False),
]


def checkpoint_of(sizes, seed=1):
    return Checkpoint(untrained.random_weights(sizes, seed), sizes, args_of(sizes))


def exported(tmp_path, sizes, dims=None, name="m.onnx"):
    profile = profile_for("v2", sizes.native_dims, dims)
    return export(checkpoint_of(sizes), profile, "v2", {"kind": "import", "family": "v2"}, tmp_path / name)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 8, 256), (9, 256, 1), (40, 11, 23)])
def test_the_file_gives_what_pytorch_gives(tmp_path, sizes, size):
    model = exported(tmp_path, sizes)
    network = encoder_of(checkpoint_of(sizes).tensors, sizes, model.profile)
    inputs = parity.inputs_of(*size, seed=99)
    measured = parity.distance([parity.Session(model.path.read_bytes()).run(inputs)], [run_torch(network, inputs)])
    assert measured.error_per_rms <= LIMITS["fp32"].error_per_rms
    assert measured.max_code_step <= 1


# Case, precision, target, operator of the recurrence.
FORMS = [
    ("v1.0-early", "fp32", "any", "GRU"),
    ("v1.0-early", "fp16", "any", "GRU"),
    ("v1.0-qat", "fp32", "any", "Scan"),
    ("v1.0-qat", "fp32", "cpu", "GRU"),
    ("v1.1-mpc", "fp32", "any", "Scan"),
    ("v1.1-mpc", "fp32", "cpu", "GRU"),
    ("v1.1-mpc", "fp16", "any", "Scan"),
    ("v1.1-aws", "fp32", "any", "Scan"),
    ("v2", "fp32", "any", None),
    ("v2", "fp16", "any", None),
    ("v2 with QK-norm", "fp32", "cpu", None),
    ("v2 with QK-norm", "fp16", "any", None),
]


@pytest.mark.parametrize(("case", "precision", "target", "operator"), FORMS)
def test_every_family_keeps_the_limits_of_its_precision_on_inputs_it_was_not_made_with(
    tmp_path, case, precision, target, operator
):
    sizes, family = SMALL[case], family_of_case(case)
    profile = profile_for(family, sizes.native_dims, 10)
    checkpoint = Checkpoint(tensors_of(sizes, 7), sizes, {})
    model = export(checkpoint, profile, family, {}, tmp_path / "m.onnx", precision, target)
    network = encoder_of(checkpoint.tensors, sizes, profile)
    cases = [
        parity.inputs_of(*size, seed=5) for size in ((1, 1, 1), (3, 8, 256), (2, 256, 8), (64, 40, 40), (17, 11, 23))
    ]
    session = parity.Session(model.path.read_bytes())
    measured = parity.distance((session.run(c) for c in cases), (run_torch(network, c) for c in cases))
    assert measured.within(precision), measured
    if precision == "fp16":  # float16 must show: a file that is float32 inside is not what was asked
        assert measured.error_per_rms > LIMITS["fp32"].error_per_rms
    operators = {n.op_type for n in onnx.load(model.path).graph.node}
    assert operators & {"GRU", "Scan", "Loop", "If"} == ({operator} if operator else set())
    assert model.variant.devices == (("cpu", "cuda") if target == "any" and precision != "int8" else ("cpu",))


def test_the_own_gru_as_an_onnx_gru_resets_before_the_product(tmp_path):
    """Trap T6: with `linear_before_reset=1` the file would be fast on a GPU and wrong."""
    sizes = SMALL["v1.1-mpc"]
    checkpoint = Checkpoint(tensors_of(sizes), sizes, {})
    model = export(checkpoint, profile_for("v1.1-mpc", 12), "m", {}, tmp_path / "m.onnx", target="cpu")
    proto = onnx.load(model.path)
    cells = [n for n in proto.graph.node if n.op_type == "GRU"]
    assert [next(a.i for a in n.attribute if a.name == "linear_before_reset") for n in cells] == [0, 0]
    for node in cells:
        next(a for a in node.attribute if a.name == "linear_before_reset").i = 1
    # The other form takes the state's bias inside; it is zero here, so only the order differs.
    case = parity.inputs_of(16, 24, 24)
    right = parity.Session(model.path.read_bytes()).run(case)
    wrong = parity.Session(proto.SerializeToString()).run(case)
    assert not parity.distance([wrong], [right]).ok


def test_int8_weights_fill_seven_bits_and_a_pixel_s_codes_do_not_depend_on_its_neighbours(tmp_path):
    sizes = EncoderSizes(64, 2, 4, 96, 96, 32, False)  # narrower ones lose more than int8 may
    checkpoint = Checkpoint(tensors_of(sizes), sizes, {})
    model = export(checkpoint, profile_for("v2", 32), "m", {}, tmp_path / "m.onnx", "int8", "cpu")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(model.path).graph.initializer}
    whole = [a for name, a in stored.items() if a.dtype == np.int8 and name.endswith(".weight")]
    assert len(whole) == 2 * (sizes.layers * 5 - 3)  # both sensors: q, k, v, linear1, linear2; not the first q, k, v
    assert all(np.abs(a).max() == 64 for a in whole)
    session = parity.Session(model.path.read_bytes())
    case, bright = parity.inputs_of(8, 16, 16), parity.inputs_of(8, 16, 16, seed=3)
    bright["s2"][:] = 30_000
    alone = session.run(case)
    beside = session.run({name: np.concatenate([case[name], bright[name]]) for name in INPUTS})
    np.testing.assert_array_equal(beside.codes[:8], alone.codes)


def test_a_file_that_is_too_far_from_pytorch_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(LIMITS, "fp16", LIMITS["fp32"])
    sizes = SMALL["v2"]
    with pytest.raises(NotProven, match=r"m.onnx was not written: its fp16 graph is .* of rms from PyTorch"):
        export(Checkpoint(tensors_of(sizes), sizes, {}), profile_for("v2", 16), "m", {}, tmp_path / "m.onnx", "fp16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("precision", "target", "message"),
    [
        ("bf16", "any", "precision 'bf16': it must be one of fp32, fp16, int8"),
        ("fp32", "tpu", "target 'tpu': it must be one of any, cpu"),
        ("fp16", "cpu", "fp16 for target cpu"),
    ],
)
def test_forms_that_do_not_exist_are_refused(tmp_path, precision, target, message):
    sizes = SMALL["v2"]
    with pytest.raises(BadInput, match=message):
        export(
            Checkpoint(tensors_of(sizes), sizes, {}),
            profile_for("v2", 16),
            "m",
            {},
            tmp_path / "m.onnx",
            precision,
            target,
        )


def test_codes_are_made_from_the_stored_dimensions_alone(tmp_path):
    whole, prefix = exported(tmp_path, SIZES[2]), exported(tmp_path, SIZES[2], dims=16, name="p.onnx")
    inputs = parity.inputs_of(20, 8, 8)
    all_dims, kept = (parity.Session(m.path.read_bytes()).run(inputs) for m in (whole, prefix))
    np.testing.assert_array_equal(kept.embedding, all_dims.embedding[:, :16])
    codes, scale = quantise(all_dims.embedding[:, :16])
    np.testing.assert_array_equal(kept.codes, codes)
    np.testing.assert_array_equal(kept.scale, scale)
    assert prefix.dims == 16


def test_the_same_weights_give_the_same_bytes_wherever_they_are_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    a, b = exported(tmp_path, SIZES[0]), exported(tmp_path / "elsewhere", SIZES[0], name="other.onnx")
    assert a.path.read_bytes() == b.path.read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["m.onnx"]


def test_nothing_in_the_file_tells_of_the_machine_that_made_it(tmp_path):
    model = exported(tmp_path, SIZES[0])
    content = model.path.read_bytes()
    for word in (str(tmp_path), str(Path(__file__).parents[2]), os.sep + "site-packages", ".py"):
        assert word.encode() not in content
    proto = onnx.load(model.path)
    assert not proto.doc_string
    assert not any(n.doc_string or n.metadata_props for n in proto.graph.node)


def test_the_file_carries_its_contract_and_proof(tmp_path):
    model = exported(tmp_path, SIZES[0])
    props = {p.key: p.value for p in onnx.load(model.path).metadata_props}
    assert json.loads(props["tessera_beam"]) == {"format": "tessera-beam/model", "version": 2}
    assert props["profile"] == profile_for("v2", 12).to_json()
    assert json.loads(props["origin"]) == {"kind": "import", "family": "v2"}
    assert props["name"] == f"v2-{props['weights_sha256'][:8]}"
    assert model.parity["max_abs_error"] <= LIMITS["fp32"].error_per_rms
    assert model.parity["codes"] == sum(n for n, _, _ in parity.SIZES) * 12


def test_a_profile_of_another_width_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(BadInput, match="profile v2 has 64 dimensions, the weights 12"):
        export(checkpoint_of(SIZES[0]), profile_for("v2", 64), "v2", {}, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no folder .*gone"):
        exported(tmp_path / "gone", SIZES[0])


def test_a_folder_in_the_file_s_place_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"is a folder: give the model file's own name, e.g. .*m.onnx"):
        check_out(tmp_path)


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(path, content):
        path.open("wb").write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BadInput, match=r"m\.onnx cannot be written: No space left on device"):
        exported(tmp_path, SIZES[0])
    assert not list(tmp_path.iterdir())


def test_a_stem_that_cannot_stand_in_paths_is_refused_before_work(tmp_path):
    with pytest.raises(BadInput, match="model name 'a/b'"):
        export(Checkpoint(tensors_of(SMALL["v2"]), SMALL["v2"], {}), profile_for("v2", 16), "a/b", {}, tmp_path / "m")


@pytest.mark.parametrize(
    ("profile", "case", "precision", "target", "heads", "cut", "name"),
    [
        ("v1.1-mpc+nearest", "v1.1-mpc", "fp32", "any", None, None, "v1.1-mpc-nearest-01234567"),
        ("v1.1-mpc", "v1.1-mpc", "fp32", "cpu", None, None, "v1.1-mpc-01234567-cpu"),
        ("v1.1-mpc", "v1.1-mpc", "int8", "cpu", None, None, "v1.1-mpc-01234567-int8"),
        ("v1.1-mpc", "v1.1-mpc", "fp32", "any", None, 8, "v1.1-mpc-01234567-8d"),
        ("v1.0-early", "v1.0-early", "fp16", "any", 3, None, "v1.0-early-01234567-3h-fp16"),
        ("v1.0-early", "v1.0-early", "fp32", "cpu", None, None, "v1.0-early-01234567"),
        ("v2", "v2", "fp32", "cpu", None, 8, "v2-01234567-8d"),
        ("v1.0-qat", "v1.0-qat", "fp32", "any", 4, None, "v1.0-qat-01234567"),
    ],
)
def test_whatever_makes_other_codes_makes_another_name(profile, case, precision, target, heads, cut, name):
    sizes = SMALL[case]
    origin = {"heads_from": "given" if heads else "family"}
    meant = profile_for(profile, sizes.native_dims, cut)
    variant = variant_of(sizes, precision, target)
    assert name_of(profile, "0123456789", sizes, meant, variant, origin) == name


@pytest.mark.parametrize("profile", names())
def test_every_published_name_can_stand_in_an_item_s_id(profile):
    sizes = SMALL[family_of_case(profile.partition("+")[0])]
    meant, variant = profile_for(profile, sizes.native_dims), variant_of(sizes)
    name = name_of(profile, "0123456789", sizes, meant, variant, {})
    assert item_id("33TUL", "2024", name) == f"33TUL_2024_{name}"


def test_the_same_seed_gives_the_same_file_of_random_weights(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        untrained.write(tmp_path / name, seed)
    a, b, c = (tmp_path / name for name in "abc")
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()
    assert open_model(a).origin["kind"] == "untrained" and open_model(a).name.startswith("untrained-")


def chosen(n):
    """Rows of the v2 sampler for n valid observations, by the rule's words."""
    length = min(256, max(8, -(-n // 8) * 8))
    if n > 256:
        return [int(i * (n - 1) / 255) for i in range(256)]
    rows, extra = list(range(n)), length - n
    if extra <= n:
        groups = np.array_split(np.arange(n), extra) if extra else []
        return rows + [int(g[len(g) // 2]) for g in groups]
    return rows + [i % n for i in range(extra)]


def pixel_inputs(tile, row, col):
    """One pixel of a d-pixel directory as the file's inputs, or None without a valid optical observation."""
    seen = np.flatnonzero(tile["masks"][:, row, col])
    if not len(seen):
        return None
    s2 = seen[chosen(len(seen))]
    s1, orbit, doy = [np.empty((0, 2), np.int16)], [], []
    for number, name in enumerate(("ascending", "descending")):
        series = tile[f"sar_{name}"][:, row, col]
        valid = (series != 0).any(-1)
        s1.append(series[valid].astype(np.int16))
        doy += tile[f"sar_{name}_doy"][valid].tolist()
        orbit += [number] * int(valid.sum())
    if doy:
        keep = chosen(len(doy))
        rows, orbit, doy = np.concatenate(s1)[keep], np.array(orbit)[keep], np.array(doy)[keep]
    else:
        rows, orbit, doy = np.zeros((1, 2)), np.zeros(1), np.zeros(1)
    return {
        "s2": tile["bands"][s2, row, col][None].astype(np.uint16),
        "s2_doy": tile["doys"][s2][None].astype(np.int16),
        "s1": rows[None].astype(np.int16),
        "s1_orbit": orbit[None].astype(np.uint8),
        "s1_doy": doy[None].astype(np.int16),
    }


@needs_golden
@pytest.mark.parametrize("name", ["v2", "v2-qknorm"])
def test_an_imported_checkpoint_gives_the_codes_of_the_reference_for_a_tile(tmp_path, name):
    loaded = load_checkpoint(GOLDEN / f"{name}.pt", "v2")
    model = export(loaded, profile_for("v2", loaded.sizes.native_dims), "v2", {}, tmp_path / "m.onnx")
    session = parity.Session(model.path.read_bytes())
    folder = GOLDEN / f"tile_{name}"
    tile = {f.stem: np.load(f) for f in folder.glob("*.npy")}
    expected = np.load(folder / "expected.npz")
    steps, scales = [], []
    for row, col in np.ndindex(*tile["masks"].shape[1:]):
        inputs = pixel_inputs(tile, row, col)
        if inputs is None:
            continue
        run = session.run(inputs)
        steps.append(np.abs(run.codes[0].astype(int) - expected["codes"][row, col]))
        scales.append(abs(run.scale[0] - expected["scales"][row, col]))
    assert len(steps) > 100
    assert np.mean(np.array(steps) == 0) >= 0.9998
    assert np.max(steps) <= 1
    assert max(scales) <= 1e-5
