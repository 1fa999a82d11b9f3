"""Writes golden_shipped.npz: inputs and the NumPy reference's codes for the shipped model; run it when that changes.

python tests/model/make_golden.py
"""

from pathlib import Path

import numpy as np
from onnx import load, numpy_helper

from model.modelfile import open_model
from model.parity import inputs_of
from model.reference import encode

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "pipeline" / "demo" / "model.onnx"
GOLDEN = HERE / "golden_shipped.npz"

if __name__ == "__main__":
    opened = open_model(MODEL)
    weights = {t.name: numpy_helper.to_array(t) for t in load(MODEL).graph.initializer}
    inputs = inputs_of(24, 24, 16, seed=7)
    outputs = encode(weights, opened.encoder, opened.profile, inputs)
    np.savez_compressed(
        GOLDEN, codes=outputs.codes, scale=outputs.scale, weights_sha256=opened.weights_sha256, **inputs
    )
