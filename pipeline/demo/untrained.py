"""Untrained: encoders whose weights are seeded random numbers, and a model file of one of the shipped model's sizes."""

import dataclasses
from pathlib import Path

import numpy as np

from model.extras import need
from model.families import profile_for
from model.profile import Profile
from model.weights import EncoderSizes, Tensors, tensor_shapes

SEED = 1
# As small as keeps the whole path real (two backbones, heads, layers, reducer); speed on two cores is what it is for.
SIZES = EncoderSizes(width=32, layers=1, heads=2, feed_forward=64, hidden=128, native_dims=128, qk_norm=False)
NOTES = "untrained: random weights from a fixed seed, for demonstrations and tests; its embeddings mean nothing"


def random_weights(sizes: EncoderSizes, seed: int) -> Tensors:
    """Uniform weights that keep the variance of what passes through; the same numbers on every machine.

    Norms start as the identity and biases at zero.
    """
    random = np.random.RandomState(seed)  # the legacy generator's stream is frozen
    tensors = {}
    for name, shape in tensor_shapes(sizes).items():
        if name.endswith("bias"):
            tensors[name] = np.zeros(shape, np.float32)
        elif len(shape) == 1:
            tensors[name] = np.ones(shape, np.float32)
        else:
            reach = np.sqrt(3.0 / shape[1])
            tensors[name] = random.uniform(-reach, reach, shape).astype(np.float32)
    return tensors


def untrained_profile(sizes: EncoderSizes = SIZES) -> Profile:
    """The v2 contract under a name that says what the numbers are worth."""
    return dataclasses.replace(profile_for("v2", sizes.native_dims), name="untrained", notes=NOTES)


def write(out: Path, seed: int = SEED) -> None:
    """Writes the model file. Raises BadInput without PyTorch."""
    need("torch", "making the untrained model")
    from model.checkpoints import Checkpoint, args_of
    from model.export import export

    tensors = random_weights(SIZES, seed)
    origin = {"kind": "untrained", "family": "v2", "seed": seed, "args": args_of(SIZES)}
    export(Checkpoint(tensors, SIZES, args_of(SIZES)), untrained_profile(), "untrained", origin, out)
