"""Embedding of a d-pixel folder in the published layout, without a tile, a catalogue or an engine."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import BadInput
from model.modelfile import open_model
from transforms import dpixels
from transforms.draws import Place
from transforms.encode import MICRO_BATCH_PX, device_kind, encode_window, provider_for, session_of
from transforms.storage import open_store


def embed_dpixels(folder: str, model_path: str, out: str, device: str, warn: Callable[[str], None]) -> dict[str, Any]:
    """Embeds a d-pixel folder in the published layout; writes `<name>.npy` and `<name>_scales.npy`.

    Pixels without a valid optical observation get -128 and NaN. Samplers that draw do so by the folder's name.

    Raises:
      BadInput: a model or folder that cannot be used.
    """
    model = open_model(model_path)
    source = Path(folder)
    pixels = dpixels.load(source, warn)
    provider = provider_for(device, model)
    session = session_of(model, provider)
    name = source.resolve().name
    begun = time.perf_counter()
    codes, scale = encode_window(session, model.profile, Place(name, "", 0, 0), pixels, None, MICRO_BATCH_PX[provider])
    seconds = time.perf_counter() - begun
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise BadInput(f"--out {out}: there is a file of that name")
    store = open_store(out)
    for file, array in ((f"{name}.npy", codes), (f"{name}_scales.npy", scale)):
        with store.writer(file) as f:
            np.save(f, array, allow_pickle=False)
    store.sweep()
    embedded = int(np.isfinite(scale).sum())
    return {
        "codes": str(target / f"{name}.npy"),
        "scales": str(target / f"{name}_scales.npy"),
        "shape": list(codes.shape),
        "pixels": int(scale.size),
        "embedded": embedded,
        "no_optical": int(scale.size) - embedded,
        "model": model.name,
        "device": device_kind(provider),
        "seconds": round(seconds, 2),
    }
