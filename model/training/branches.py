"""Branches: the views of a step through one encoder, quantiser and projector, to one loss; what a rank trains."""

import abc
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.encoders import Encoder
from model.heads import Projector
from model.losses.barlow import barlow
from model.losses.mix import Mixing, barlow_with_mix, mix_tokens
from model.losses.reduce import rows_of_ranks
from model.losses.variants import BarlowRule, MixRule
from model.qat import FakeQuantise
from model.training.dropout import keep
from model.training.feed import Inputs

LOSS = "loss"  # what the whole of it is called among its terms


class Given(NamedTuple):
    """What a module is given of a step: this rank's rows.

    Attributes:
      first, second: the views.
      partner: second views of the rows that the first ones are mixed with, and how; None for no mixing.
      mixing: of all ranks' rows.
      keys: int64 (branches, n) of the reducer's dropout.
    """

    first: Inputs[Tensor]
    second: Inputs[Tensor]
    partner: Inputs[Tensor] | None
    mixing: Mixing | None
    keys: Tensor

    def part(self, rows: slice) -> "Given":
        """Some rows, to pass the encoder by themselves; their loss is that of all."""
        first, second = cut(self.first, rows), cut(self.second, rows)
        partner = None if self.partner is None else cut(self.partner, rows)
        return self._replace(first=first, second=second, partner=partner, keys=self.keys[:, rows])


def cut(inputs: Inputs[Tensor], rows: slice) -> Inputs[Tensor]:
    """Some of the rows."""
    return Inputs(*(t[rows] for t in inputs))


def partners_of(second: Inputs[Tensor], mixing: Mixing, own: slice) -> Inputs[Tensor]:
    """The second views of the rows that this rank's are mixed with, wherever they lie, raw: some kB a row are sent.

    Args:
      own: this rank's part of the rows of all ranks (`order.share_of`).
    """
    partner = torch.from_numpy(mixing.of_rank(own)).to(second.s2.device)
    return Inputs(*(_rows(rows_of_ranks(t), partner) for t in second))


def _rows(everyone: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor of any type; PyTorch has no indexing of unsigned 16-bit numbers on every device."""
    if everyone.dtype == torch.uint16:
        return everyone.view(torch.int16)[rows].view(torch.uint16)
    return everyone[rows]


class Objective(nn.Module, abc.ABC):
    """What is trained, as the one module that DistributedDataParallel wraps, called once a step.

    The loss is that of the batch of all ranks (`losses/reduce.py`), so a batch may be cut only in front of it: the
    embeddings of a part of the rows by themselves, the terms of all of them at once.
    """

    @abc.abstractmethod
    def embeddings(self, given: Given) -> tuple[Tensor, ...]:
        """Embeddings (n, native_dims) of every branch, in front of the quantiser."""

    @abc.abstractmethod
    def terms(self, embeddings: tuple[Tensor, ...], given: Given, step: int) -> dict[str, Tensor]:
        """The loss as `LOSS` and what it is made of, scalars, the same on every rank."""

    def forward(self, given: Given, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """The terms, and the first branch's embeddings (n, native_dims) without their history."""
        embeddings = self.embeddings(given)
        return self.terms(embeddings, given, step), embeddings[0].detach()


class Branches(Objective):
    """Barlow Twins with the mix regulariser: two views and their mixture.

    Args:
      rule, mix_rule: `losses/variants.py`; without a mix rule there are two branches.
      split: `correlation.deviation`.
      dropout: share of the reducer's hidden values that are dropped, by key.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: Projector,
        quantiser: FakeQuantise,
        rule: BarlowRule,
        mix_rule: MixRule | None = None,
        split: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.quantiser = encoder, projector, quantiser
        self.rule, self.mix_rule, self.split, self.dropout = rule, mix_rule, split, dropout

    def embeddings(self, given: Given) -> tuple[Tensor, ...]:
        first, second = self.encoder.raw_tokens(*given.first), self.encoder.raw_tokens(*given.second)
        branches = [first, second]
        if given.partner is not None and given.mixing is not None:
            partner, share = self.encoder.raw_tokens(*given.partner), given.mixing.share
            branches.append((mix_tokens(first[0], partner[0], share), mix_tokens(first[1], partner[1], share)))
        return tuple(embedded(self.encoder, *tokens, given.keys[i], self.dropout) for i, tokens in enumerate(branches))

    def terms(self, embeddings: tuple[Tensor, ...], given: Given, step: int) -> dict[str, Tensor]:
        dims = self.encoder.profile.dims
        z1, z2, *mixed = (self.projector(quantised(self.quantiser, z, dims, step)) for z in embeddings)
        if self.mix_rule is None or given.mixing is None:
            plain = barlow(z1, z2, self.rule, self.split)
            return {LOSS: plain.total, "on": plain.on, "off": plain.off}
        terms = barlow_with_mix(z1, z2, mixed[0], given.mixing, self.mix_rule, self.rule, self.split)
        return {LOSS: terms.total, "on": terms.on, "off": terms.off, "mix": terms.mix}


def embedded(encoder: Encoder, tokens2: Tensor, tokens1: Tensor, keys: Tensor, dropout: float) -> Tensor:
    """Embeddings (n, native_dims) of tokens, with the dropout of their rows' keys; without any where its share is 0."""
    hidden = encoder.sizes.hidden
    factors = keep(keys, hidden, dropout, torch.float32) if dropout and hidden else None
    if factors is None and encoder.training and hidden:
        factors = tokens2.new_ones(())  # in place of nn.Dropout's own 0.2
    return encoder.embed_tokens(tokens2, tokens1, factors)


def quantised(quantiser: FakeQuantise, z: Tensor, dims: int, step: int) -> Tensor:
    """An embedding with the values that are stored, the first `dims`, as their codes will give them."""
    if dims == z.shape[-1]:
        return quantiser(z, step)  # type: ignore[no-any-return]
    return torch.cat([quantiser(z[..., :dims], step), z[..., dims:].to(z.dtype)], -1)
