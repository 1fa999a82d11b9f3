"""Embedding of records: a set's pixels through a model file, with the sampler that its profile asks for."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.modelfile import ModelFile
from model.quantise import dequantise, quantise
from model.records import Records
from model.shards import Batch, ShardSet
from model.views import take
from transforms.draws import Place, seeds_of
from transforms.encode import MICRO_BATCH_PX, Session, Tokens, check_pairing, provider_for
from transforms.samplers import sampler_of

TAKEN = 4096  # records held in memory at once


class _Values(Session):
    """A session that gives the embedding before it is quantised, too."""

    def values(self, batch: Tokens) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
        """Codes (N, dims), scale (N,) and embedding (N, dims) of a batch."""
        feed = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)[1:]}
        codes, scale, embedding = self._session.run(["codes", "scale", "embedding"], feed)
        return codes, scale, embedding


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings of N records, float32 (N, D), before and after quantisation; NaN where there is none."""

    values: NDArray[np.float32]
    stored: NDArray[np.float32]


class RecordEncoder:
    """Encodes records through an ONNX file; raises BadInput where the file cannot run on the device.

    Pixels are grouped by their numbers of rows and run in batches of up to the device's size. The last batch of a group
    is not filled up, so codes may differ from a map's in the last bit of a float.
    """

    def __init__(self, model: ModelFile, device: str = "cpu", threads: int = 0) -> None:
        self.model, self._sampler = model, sampler_of(model.profile)
        provider = provider_for(device, model)
        check_pairing(model, provider)
        self._session = _Values(str(model.path), provider, threads)
        self._batch_px = MICRO_BATCH_PX[provider]

    def __call__(self, batch: Batch, places: Records | None = None) -> Embedded:
        """Embeddings of a batch.

        Args:
          places: of the same records: samplers that draw do so by a pixel's place in its tile, as they do for a map;
            without places, or for records without a tile, by the record's number.
        """
        n, dims = len(batch), self.model.dims
        stored = np.full((n, dims), np.nan, np.float32)
        values = stored.copy()
        seen = np.flatnonzero(batch.s2_valid.any(1))
        t2, t1 = (self._sampler.length(valid.sum(1)) for valid in (batch.s2_valid, batch.s1_valid))
        seeds = self._seeds(batch, places) if self._sampler.draws else {}
        key = (t2 * 1024 + t1)[seen]
        order = np.argsort(key, kind="stable")
        for group in np.split(seen[order], np.flatnonzero(np.diff(key[order])) + 1):
            for start in range(0, len(group), self._batch_px):
                at = group[start : start + self._batch_px]
                codes, scale, values[at] = self._session.values(
                    self._tokens(batch, at, int(t2[at[0]]), int(t1[at[0]]), seeds)
                )
                stored[at] = dequantise(codes, scale)
        return Embedded(values, stored)

    def _tokens(
        self, batch: Batch, at: NDArray[np.int64], t2: int, t1: int, seeds: dict[str, NDArray[np.uint64]]
    ) -> Tokens:
        valid = batch.s1_valid[at]
        if self._sampler.empty == "all-steps":  # of the pixel: what only pads it is none of its steps
            valid[~valid.any(1)] = (batch.s1_doy[at] > 0)[~valid.any(1)]
        rows2 = self._sampler.rows(batch.s2_valid[at], t2, seeds["s2"][at] if seeds else None)
        rows1 = self._sampler.rows(valid, t1, seeds["s1"][at] if seeds else None)
        taken: Any = take
        return Tokens(
            at,
            taken(batch.s2[at], rows2),
            taken(batch.s2_doy[at], rows2),
            taken(batch.s1[at], rows1),
            taken(batch.s1_orbit[at], rows1),
            taken(batch.s1_doy[at], rows1),
        )

    def _seeds(self, batch: Batch, places: Records | None) -> dict[str, NDArray[np.uint64]]:
        name = self.model.profile.name
        nowhere = Place("", "", 0, 0)
        zero = np.zeros_like(batch.index)
        seeds = {sensor: seeds_of(name, nowhere, sensor, batch.index, zero) for sensor in ("s2", "s1")}
        if places is None:
            return seeds
        for tile in np.unique(places.tile[places.row_px >= 0]):
            at = np.flatnonzero((places.tile == tile) & (places.row_px >= 0))
            y, x = places.row_px[at].astype(np.int64), places.col_px[at].astype(np.int64)
            for sensor, made in seeds.items():
                made[at] = seeds_of(name, Place(tile.decode(), self._period, 0, 0), sensor, y, x)
        return seeds

    def stored(self, batch: Batch) -> NDArray[np.float32]:
        """What is stored of a batch, (N, D) float32."""
        return self(batch).stored

    _period = ""

    def embed(self, shards: ShardSet, index: NDArray[np.int64]) -> Embedded:
        """Embeddings of these records of a set, some at a time."""
        self._period = shards.manifest.period
        parts = []
        for a in range(0, len(index), TAKEN):
            some = index[a : a + TAKEN]
            parts.append(self(shards.take(some), shards.records(some) if self._sampler.draws else None))
        return Embedded(np.concatenate([p.values for p in parts]), np.concatenate([p.stored for p in parts]))


def prefix(embedded: Embedded, model: ModelFile, dims: int, stored: bool) -> NDArray[np.float32]:
    """The first `dims` values (N, dims); where `stored`, quantised by a scale of their own, as a file of them does."""
    if stored and dims == model.dims:
        return embedded.stored
    values = embedded.values[:, :dims]
    if not stored:
        return values
    out = np.full_like(values, np.nan)
    there = np.isfinite(values).all(1)
    out[there] = dequantise(*quantise(values[there], model.profile.scale_floor, model.profile.scale_floor_of))
    return out
