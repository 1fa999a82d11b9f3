"""Rotate: an embedding turned so that its first values vary most, folded into the weights of the last layer."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from model.errors import BadInput
from model.weights import EncoderSizes, Tensors

Doubles = NDArray[np.float64]


def check_rotatable(sizes: EncoderSizes) -> None:
    """Raises BadInput where the embedding cannot be turned by its weights.

    A LayerNorm stands between the last layer and the embedding of a v2 student. It takes the mean of the values away,
    so a turn in front of it comes out as the same turn only if it leaves the direction of all ones alone; but what is
    without that direction has no turn of this kind whose values vary independently of each other.
    """
    if sizes.output_norm:
        raise BadInput(
            "rotation: the output passes a LayerNorm, behind which no weights stand that could take the turn; "
            "families v1.0 and v1.1 have none, and a v2 student gets ordered prefixes by [distil]"
        )


@dataclasses.dataclass
class Moments:
    """Mean and covariance of embeddings that come batch by batch.

    Attributes:
      count: rows so far. total: (D,) their sum. squares: (D, D) sum of outer products, of rows less `origin`.
      origin: (D,) the first batch's mean: differences are small where the mean is large.
    """

    count: int = 0
    total: Doubles | None = None
    squares: Doubles | None = None
    origin: Doubles | None = None

    def add(self, z: NDArray[np.floating]) -> None:
        """Takes in (n, D)."""
        rows = np.asarray(z, np.float64)
        if self.origin is None or self.total is None or self.squares is None:
            self.origin = rows.mean(0)
            self.total, self.squares = np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1]))
        rows = rows - self.origin
        self.count += len(rows)
        self.total += rows.sum(0)
        self.squares += rows.T @ rows

    @property
    def covariance(self) -> Doubles:
        """(D, D). Raises BadInput where there are no rows."""
        if self.total is None or self.squares is None:
            raise BadInput("rotation: there are no embeddings to find it from")
        mean = self.total / self.count
        return self.squares / self.count - np.outer(mean, mean)


def rotation_of(batches: Iterable[NDArray[np.floating]]) -> Doubles:
    """The turn (D, D) after which embeddings' values are uncorrelated, the most varying first: rows are directions.

    Each direction has the sign that makes its largest part positive, so that one set of embeddings has one turn.

    Raises:
      BadInput: there are no embeddings, or they are not finite.
    """
    moments = Moments()
    for batch in batches:
        moments.add(batch)
    covariance = moments.covariance
    if not np.isfinite(covariance).all():
        raise BadInput("rotation: the embeddings hold NaN or infinity")
    rows = np.linalg.eigh(covariance).eigenvectors.T[::-1]
    largest = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1)
    turned: Doubles = rows * np.sign(largest)
    return turned


def rotated(tensors: Tensors, sizes: EncoderSizes, rotation: Doubles) -> Tensors:
    """The weights of the encoder whose embedding is `rotation` times that of these.

    Raises:
      BadInput: `check_rotatable`, or a rotation of another width, or one that is none.
    """
    check_rotatable(sizes)
    d = sizes.native_dims
    if rotation.shape != (d, d) or not np.allclose(rotation @ rotation.T, np.eye(d), atol=1e-6):
        raise BadInput(f"rotation of shape {rotation.shape}: an orthogonal matrix ({d}, {d}) is needed")
    last = "dim_reducer.4" if sizes.hidden else "dim_reducer.0"
    turned = {part: rotation @ tensors[f"{last}.{part}"].astype(np.float64) for part in ("weight", "bias")}
    return {**tensors, **{f"{last}.{part}": t.astype(np.float32) for part, t in turned.items()}}
