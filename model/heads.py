"""Heads: the projector that stands on an encoder while it is trained, and what it takes of a card's memory."""

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.errors import BadInput
from model.losses.reduce import standardise

EPSILON = 1e-5  # torch.nn.BatchNorm1d's default, which the published projectors use


class BatchNorm(nn.Module):
    """Each column to mean 0 and deviation 1 over the rows of all ranks, then scaled and shifted.

    Two processes with half a batch each give what one gives with all of it; torch.nn.SyncBatchNorm does so on GPUs
    alone. There are no running statistics: a projector never sees anything but a batch, and is dropped in the end.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:  # (n, width), float32 or float64 out
        x = standardise(x, EPSILON)
        return torch.addcmul(self.bias, x, self.weight)


class Projector(nn.Sequential):
    """Linear layers without bias, with batch norm and ReLU between them; the last one's output goes to the loss.

    A bias in front of a batch norm has no effect, nor has one in front of the loss, which standardises too.

    Args:
      widths: of the embedding and of every layer's output, e.g. (128, 8192, 8192, 8192).

    Raises:
      BadInput: fewer than two widths, or one below 1.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        _check(widths)
        layers: list[nn.Module] = []
        for inside, outside in itertools.pairwise(widths):
            layers += [nn.Linear(inside, outside, bias=False), BatchNorm(outside), nn.ReLU()]
        super().__init__(*layers[:-2])
        self.widths = tuple(widths)


def _check(widths: Sequence[int]) -> None:
    if len(widths) < 2 or min(widths) < 1:
        raise BadInput(f"projector widths {list(widths)}: the embedding's and one layer's at least, each above 0")


def parameter_count(widths: Sequence[int]) -> int:
    """Parameters of `Projector(widths)`."""
    _check(widths)
    matrices = sum(a * b for a, b in itertools.pairwise(widths))
    return matrices + 2 * sum(widths[1:-1])  # scale and shift of the norms


@dataclasses.dataclass(frozen=True)
class ProjectorMemory:
    """What the training of a projector takes on one card, bytes.

    Attributes:
      parameters: their number, on all cards together.
      weights, gradients, optimiser: float32; AdamW keeps two numbers a parameter.
      copies: the half-precision weights of autocast; 0 without it.
      activations: what the backward pass needs of the layers and of the loss's standardisation, in all views.
      correlation: the matrices C of the loss, kept until the way back, which makes no more of them.
      gathered: rows of all ranks: where C is split, all that it is made from; with the mix regulariser, one view.
    """

    parameters: int
    weights: int
    gradients: int
    optimiser: int
    copies: int
    activations: int
    correlation: int
    gathered: int

    @property
    def total(self) -> int:
        """All bytes; what the allocator wastes and the encoder itself are not among them."""
        fields = dataclasses.asdict(self)
        return sum(n for name, n in fields.items() if name != "parameters")


def projector_memory(
    widths: Sequence[int],
    rows: int,
    *,
    mixed: bool = True,
    half: bool = False,
    ranks: int = 1,
    split: bool = False,
    weight_shards: int = 1,
) -> ProjectorMemory:
    """What `Projector(widths)` with the losses takes on each card while it trains with AdamW.

    DistributedDataParallel must be told `gradient_as_bucket_view=True`, or it keeps the gradients twice.

    Args:
      rows: of one rank's batch.
      mixed: whether the mix regulariser is on: a third pass, and two more correlations.
      half: whether the matrix products run under autocast to a 2-byte type; norms and the loss stay float32.
      ranks: cards.
      split: whether the correlation is split among them.
      weight_shards: among how many cards weights, gradients and optimiser are cut (FSDP); 1 under DDP. The layer that
        is gathered whole for its turn is not counted.

    Raises:
      BadInput: as `Projector`; rows or ranks below 1.
    """
    parameters = parameter_count(widths)
    if min(rows, ranks, weight_shards) < 1:
        raise BadInput(f"{rows} rows on {ranks} ranks, weights cut in {weight_shards}: each must be 1 at least")
    views, correlations = (3, 3) if mixed else (2, 1)
    word = 4
    inner, last = widths[1:-1], widths[-1]
    # A norm keeps its centred and its standardised input, ReLU its output, which is the next layer's input; under
    # autocast that input is kept once more, in half.
    layers = 3 * word * sum(inner) + (2 * sum(widths[:-1]) if half else word * widths[0])
    loss = 2 * word * last  # centred and standardised; of the mixed view, centred and what it misses its aim by
    own_columns = -(-last // ranks) if split else last
    matrix = word * last * own_columns
    everyones = word * rows * ranks if ranks > 1 else 0
    gathered = everyones * last * mixed + (everyones * (last + own_columns) * correlations if split else 0)
    cut = -(-parameters // weight_shards)
    return ProjectorMemory(
        parameters=parameters,
        weights=word * cut,
        gradients=word * cut,
        optimiser=2 * word * cut,
        copies=2 * cut if half else 0,
        activations=views * rows * (layers + loss),
        correlation=correlations * matrix,
        gathered=gathered,
    )
