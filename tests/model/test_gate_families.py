"""Every family in every form: golden vectors of encoders that share no code with the package, and the gate itself."""

import datetime
import os
from pathlib import Path

import make_golden
import numpy as np
import pytest
from small_encoders import tensors_of

from model import parity, reference
from model.checkpoints import Checkpoint, load_checkpoint
from model.encoders import encoder_of
from model.export import export, run_torch
from model.families import FAMILIES, profile_for
from model.gate import gate
from model.gate_bench import native_of
from model.limits import LIMITS, SCALE_ERROR
from model.modelfile import parse_model
from model.variant import PRECISIONS, TARGETS, variant_of
from model.weights import ATTENTION, CUSTOM_GRU, TORCH_GRU, EncoderSizes
from pipeline.demo import untrained

SHARED = Path(__file__).parents[2] / "../shared/golden"
needs_golden = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/golden is not here")
GOLDEN = {name: rest for name, *rest in make_golden.names()}  # name -> tensors, sizes, profile
# Two libraries round the exponentials of the day's frequencies apart by a last bit: 1e-5 of the rms at day 366.
DAY_ROUNDING = 2e-5

# The sizes of the checkpoints in ../shared/golden, for runs that must not depend on them.
AS_GOLDEN = {
    "v1.0-early": EncoderSizes(64, 8, 8, 96, 0, 16, False, TORCH_GRU, False),
    "v1.0-qat": EncoderSizes(64, 4, 4, 128, 0, 16, False, CUSTOM_GRU, False),
    "v1.1-mpc": EncoderSizes(96, 4, 4, 64, 384, 24, False, CUSTOM_GRU, False),
    "v1.1-aws": EncoderSizes(96, 4, 4, 64, 384, 24, False, CUSTOM_GRU, False),
    "v2": EncoderSizes(64, 3, 4, 96, 256, 32, True),
}
LONG = (("fp32", "any"), ("int8", "any"))
PUBLISHED = ("v1.0-early", "v1.0-qat", "v1.1-mpc", "v1.1-aws", "v2", "v2-qknorm")  # files of ../shared/golden


def forms(sizes):
    """(precision, target) of every file that differs from the others."""
    found = {}
    for precision in PRECISIONS:
        for target in TARGETS:
            if (precision, target) != ("fp16", "cpu"):  # refused
                found.setdefault(variant_of(sizes, precision, target), (precision, target))
    return list(found.values())


def family_in_turn():
    """TESSERA_GATE_FAMILY, a name or "all"; left out, one a day."""
    asked = os.environ.get("TESSERA_GATE_FAMILY", "")
    if asked == "all":
        return list(FAMILIES)
    return [asked or FAMILIES[datetime.date.today().toordinal() % len(FAMILIES)]]


def write(path, name, tensors, sizes, profile, precision, target):
    origin = {"kind": "import", "family": profile.name}
    return export(Checkpoint(tensors, sizes, {}), profile, name, origin, path, precision, target).path


def golden_cases(name):
    """(inputs, native output, codes, scale) of each case."""
    arrays = np.load(make_golden.FOLDER / f"{name}.npz")
    for i in range(len(make_golden.CASES)):
        inputs = {field: arrays[f"{i}_{field}"] for field in ("s2", "s2_doy", "s1", "s1_orbit", "s1_doy")}
        yield inputs, arrays[f"{i}_native"], arrays[f"{i}_codes"], arrays[f"{i}_scale"]


def rms_of(arrays):
    return np.sqrt(np.mean(np.concatenate([a.ravel() for a in arrays]).astype(np.float64) ** 2))


def assert_codes(runs, name, precision):
    cases = list(golden_cases(name))
    steps = np.concatenate(
        [np.abs(run.codes.astype(int) - codes).ravel() for run, (_, _, codes, _) in zip(runs, cases, strict=True)]
    )
    limit = LIMITS[precision].sampled(steps.size)
    assert (steps > 0).sum() <= limit.allowed(steps.size)
    assert limit.code_step is None or steps.max() <= limit.code_step
    for run, (_, _, _, scale) in zip(runs, cases, strict=True):
        np.testing.assert_allclose(run.scale, scale, rtol=SCALE_ERROR[precision] + DAY_ROUNDING)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_encoders_give_the_golden_outputs_of_encoders_written_apart(name):
    tensors, sizes, profile = GOLDEN[name]
    cases = list(golden_cases(name))
    atol = DAY_ROUNDING * rms_of(native for _, native, _, _ in cases)
    network = encoder_of(tensors, sizes, profile)
    for inputs, native, _, _ in cases:
        np.testing.assert_allclose(reference.encode_native(tensors, sizes, profile, inputs), native, rtol=0, atol=atol)
        run = run_torch(network, inputs)
        np.testing.assert_allclose(run.embedding, native[:, : profile.dims], rtol=0, atol=atol)
    assert_codes([run_torch(network, inputs) for inputs, *_ in cases], name, "fp32")


def forms_of_golden():
    """(name, precision, target) of every case; without a GRU both float32 files are one graph, so one of them.

    Every form of one family with a GRU and of one without in each run; of the others the first, the rest as slow tests.
    """
    for name, (_, sizes, _) in GOLDEN.items():
        for precision, target in forms(sizes):
            if name != make_golden.NANO and (precision, target, sizes.pooling) != ("fp32", "cpu", ATTENTION):
                usual = (precision, target) == ("fp32", "any") or (name, precision) == ("v1.1-mpc", "int8")
                yield pytest.param(name, precision, target, marks=[] if usual else [pytest.mark.slow])


@pytest.mark.parametrize(("name", "precision", "target"), list(forms_of_golden()))
def test_every_form_of_a_family_gives_its_golden_outputs_and_passes_the_gate(tmp_path, name, precision, target):
    tensors, sizes, profile = GOLDEN[name]
    path = write(tmp_path / "m.onnx", profile.name, tensors, sizes, profile, precision, target)
    content, cases = path.read_bytes(), list(golden_cases(name))
    session = parity.Session(content)
    assert_codes([session.run(inputs) for inputs, *_ in cases], name, precision)
    if precision == "fp32":
        atol = DAY_ROUNDING * rms_of(native for _, native, _, _ in cases)
        natives = native_of(parse_model(content, path), sizes.native_dims, [inputs for inputs, *_ in cases])
        for (got, _), (_, native, _, _) in zip(natives, cases, strict=True):
            np.testing.assert_allclose(got, native, rtol=0, atol=atol)
    assert [check for check in gate(path).checks if not check.ok] == []


def test_the_golden_outputs_tell_the_families_apart():
    """T2, T4: the same weights under the other source's statistics or with the other GRU give other numbers."""
    tensors, sizes, _ = GOLDEN["v1.1-mpc"]
    inputs, native, codes, _ = next(golden_cases("v1.1-mpc"))
    other = reference.encode(tensors, sizes, profile_for("v1.1-aws", sizes.native_dims, codes.shape[1]), inputs)
    assert (other.codes != codes).mean() > 0.2
    assert np.abs(other.embedding - native[:, : codes.shape[1]]).max() > 1e-2 * rms_of([native])


def test_a_model_of_the_demos_sizes_gives_its_golden_codes_whatever_the_settings(tmp_path):
    untrained.write(tmp_path / "m.onnx")
    content = (tmp_path / "m.onnx").read_bytes()
    for settings in ({}, {"threads": 2}, {"level": "none"}):
        session = parity.Session(content, **settings)
        assert_codes([session.run(inputs) for inputs, *_ in golden_cases(make_golden.NANO)], "nano", "fp32")


def test_golden_files_are_small_and_hold_what_their_maker_makes():
    """The inputs are made anew here; the outputs to the last bits, for torch's kernels differ between machines."""
    for name, (tensors, sizes, profile) in GOLDEN.items():
        path = make_golden.FOLDER / f"{name}.npz"
        assert path.stat().st_size < 60_000
        held, made = np.load(path), make_golden.golden(tensors, sizes, profile)
        assert held.files == list(made)
        for field, array in made.items():
            assert held[field].dtype == array.dtype
            if field.endswith(("native", "scale")):
                np.testing.assert_allclose(held[field], array, rtol=0, atol=DAY_ROUNDING * np.abs(array).max())
            elif field.endswith("codes"):
                steps = np.abs(held[field].astype(int) - array)
                assert steps.max() <= 1
                assert (steps > 0).mean() < 0.01  # a value between two codes falls on either side
            else:
                np.testing.assert_array_equal(held[field], array)


@pytest.mark.slow
@needs_golden
@pytest.mark.parametrize("name", PUBLISHED)
def test_files_of_the_published_layouts_pass_the_gate_against_their_checkpoints(tmp_path, name):
    family = "v2" if name.startswith("v2") else name
    checkpoint = load_checkpoint(SHARED / f"{name}.pt", family)
    profile = profile_for(family, checkpoint.sizes.native_dims, checkpoint.stored_dims)
    path = write(tmp_path / "m.onnx", family, checkpoint.tensors, checkpoint.sizes, profile, "fp32", "any")
    report = gate(path, against=SHARED / f"{name}.pt")
    assert [check for check in report.checks if not check.ok] == []


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("family", family_in_turn())
def test_the_long_matrix_passes_for_every_form_of_one_family_in_turn(tmp_path, family):
    """Files of the golden checkpoints' size, for which the limits were measured; two of them over the long matrix."""
    sizes = AS_GOLDEN[family]
    profile, tensors = profile_for(family, sizes.native_dims), tensors_of(sizes, 6)
    for precision, target in forms(sizes):
        path = write(tmp_path / "m.onnx", family, tensors, sizes, profile, precision, target)
        full = (precision, target) in LONG
        assert [c for c in gate(path, full=full).checks if not c.ok] == [], (precision, target)
