"""Gate tokens: what a model file makes of raw numbers before its first layer, to the last bits in every precision."""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from model.gate_report import NUMBERS, Check, faults_check
from model.limits import DAY_STEPS, TOKEN_ERROR, day_error
from model.modelfile import ModelFile
from model.parity import Inputs, Session, inputs_of
from model.profile import Profile
from model.weights import MODALITIES

Bounds = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # numbers, and how far each may be off


def tokens(proto: ModelProto, model: ModelFile) -> Check:
    """Standardised rows and encoded days, taken out of the graph where they enter the encoder, against NumPy.

    Inputs cover the whole range of each type, every day and rows of day 0. In an int8 file the outputs would not tell a
    clipped reflectance from rounding; these tensors do.

    Raises:
      RunError: the file does not run with them as outputs.
    """
    names = _entries(proto)
    missing = [name for name, tensor in names.items() if not tensor]
    limit = f"standardised rows within {TOKEN_ERROR:.0e}, encoded days within {DAY_STEPS:g} float32 steps of the angle"
    why = "the encoder would be given other observations than the profile says"
    if missing:
        return Check("tokens", False, f"nothing that is {', '.join(missing)} enters the encoder", limit, why, NUMBERS)
    case = full_range()
    meant = {**_rows(case, model.profile)}
    for sensor in MODALITIES:
        meant[f"{sensor} days"] = day_rows(case[f"{sensor}_doy"].ravel(), model.encoder.width)
    probe = ModelProto()
    probe.CopyFrom(proto)
    there = {v.name for v in probe.graph.output}
    new = sorted(set(names.values()) - there)
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in new)
    values = Session(probe.SerializeToString()).values(case, names.values())
    faults: list[str] = []
    worst: dict[str, float] = {}
    for name, got in zip(names, values, strict=True):
        exact, allowed = meant[name]
        if got.shape != exact.shape:
            faults.append(f"{name} are {got.shape}, must be {exact.shape}")
            continue
        error = np.abs(got.astype(np.float64) - exact)
        error[np.isnan(error)] = np.inf
        worst[name] = float((error / allowed).max())
        if worst[name] > 1:
            faults.append(f"{name} are {error.max():.1e} off, {worst[name]:.3g} times the limit")
    right = ", ".join(f"{name} at {share:.0%} of the limit" for name, share in worst.items())
    return faults_check("tokens", NUMBERS, faults, right, limit, why)


def full_range() -> Inputs:
    """Noise over the whole range of each input's type, each day from 0 to 366 in both sensors."""
    random, case = np.random.RandomState(0), inputs_of(64, 12, 9)
    case["s2"] = random.randint(0, 65_536, case["s2"].shape).astype(np.uint16)
    case["s1"] = random.randint(-32_768, 32_768, case["s1"].shape).astype(np.int16)
    for sensor in ("s2", "s1"):
        shape = case[f"{sensor}_doy"].shape
        case[f"{sensor}_doy"] = random.permutation(np.arange(shape[0] * shape[1]) % 367).reshape(shape).astype(np.int16)
    return case


def _entries(proto: ModelProto) -> dict[str, str]:
    """Names of the tensors: "s2 rows" into the first layer, "s2 days" out of the table, s1 alike; "" for none."""
    makers = {out: node for node in proto.graph.node for out in node.output}
    found = dict.fromkeys((f"{sensor} {kind}" for sensor in MODALITIES for kind in ("rows", "days")), "")
    for node in proto.graph.node:
        for sensor in MODALITIES:
            if f"{sensor}_backbone.embedding.0.weight" in node.input:
                name = node.input[0]
                if name in makers and makers[name].op_type == "Cast":  # to the float16 of an fp16 file's products
                    name = makers[name].input[0]
                found[f"{sensor} rows"] = name
    tables = [node.output[0] for node in proto.graph.node if node.op_type == "Gather" and node.input[0] == "day_table"]
    if len(tables) == len(MODALITIES):
        found |= {f"{sensor} days": name for sensor, name in zip(MODALITIES, tables, strict=True)}
    return found


def _rows(case: Inputs, profile: Profile) -> dict[str, Bounds]:
    mean = np.array((profile.s1_ascending_mean, profile.s1_descending_mean))[case["s1_orbit"]]
    std = np.array((profile.s1_ascending_std, profile.s1_descending_std))[case["s1_orbit"]]
    x2 = (case["s2"] - np.array(profile.s2_mean)) / (np.array(profile.s2_std) + profile.std_epsilon)
    x1 = (case["s1"] - mean) / (std + profile.std_epsilon)
    x2[case["s2_doy"] == 0], x1[case["s1_doy"] == 0] = 0, 0
    rows = {"s2 rows": x2.reshape(-1, x2.shape[-1]), "s1 rows": x1.reshape(-1, x1.shape[-1])}
    return {name: (x, TOKEN_ERROR * np.maximum(np.abs(x), 1)) for name, x in rows.items()}


def day_rows(days: npt.NDArray[Any], width: int) -> Bounds:
    """The encoding of these days in float64 (N, width), sines on even places, and how far float32 may be off."""
    angle = days.astype(np.float64)[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
    exact = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(len(days), width)
    return exact, np.repeat(day_error(angle), 2, axis=1)
