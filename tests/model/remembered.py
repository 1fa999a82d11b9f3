"""The NumPy encoder, a slow and pure function, asked once for what many tests of the gate ask alike."""

import contextlib
import hashlib
import os

import numpy as np
import pytest

from model import parity, reference


@contextlib.contextmanager
def remembered(folder):
    """Keeps what the NumPy encoder gives in `folder`, which the workers of one run may share."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("encode", "encode_native"):
            patch.setattr(reference, name, remembering(getattr(reference, name), folder))
        yield


def remembering(function, folder):
    """The same function of the NumPy encoder, its results kept as files."""

    def asked(weights, sizes, profile, inputs):
        digest = hashlib.sha256(f"{function.__name__} {sizes} {profile}".encode())
        for name, array in [*sorted(weights.items()), *sorted(inputs.items())]:
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        path = folder / f"{digest.hexdigest()}.npz"
        if not path.exists():
            result = function(weights, sizes, profile, inputs)
            arrays = {"native": result} if isinstance(result, np.ndarray) else vars(result)
            partial = path.with_name(f"{os.getpid()}-{path.name}")
            np.savez(partial, **arrays)
            partial.replace(path)
        with np.load(path) as kept:
            return kept["native"] if "native" in kept else parity.Outputs(**kept)

    return asked
