"""Distil: a student that gives a frozen teacher's embedding from each prefix of its own (the recipe of TESSERA v2)."""

import torch
from torch import Tensor, nn

from model.checkpoints import Checkpoint
from model.encoders import Encoder, encoder_of
from model.errors import BadInput
from model.families import profile_for
from model.losses.reduce import in_full, sum_over_ranks
from model.profile import Profile
from model.qat import FakeQuantise
from model.training.branches import LOSS, Given, Objective, embedded


def teacher_of(checkpoint: Checkpoint, family: str = "") -> Encoder:
    """A checkpoint's encoder, frozen, with the statistics that it was trained with.

    Args:
      family: of a published one, of `families.names()`; "" for what its file says.

    Raises:
      BadInput: a published one whose family is not known.
    """
    if checkpoint.record is None and not checkpoint.family:
        raise BadInput(f"teacher {checkpoint.file_name}: nothing says its family; give [distil] teacher-family")
    profile = checkpoint.record.profile if checkpoint.record else None
    if profile is None:
        profile = profile_for(family or checkpoint.family, checkpoint.sizes.native_dims, checkpoint.stored_dims)
    return encoder_of(checkpoint.tensors, checkpoint.sizes, profile).requires_grad_(False)


class Student(Objective):
    """An encoder, and for each prefix of its embedding one linear head that gives the whole teacher.

    A self-supervised loss of prefixes would give them no order: it fixes an embedding up to a rotation alone. A teacher
    fixes it whole, and a prefix that must give all of it gets what matters most (facts/model.md 4.5). Heads are thrown
    away in the end. Each prefix is quantised by a scale of its own, as a file cut there would store it.

    Args:
      teacher: sees the second view; the student sees the first one. No part of the module: it is neither trained nor
        sent from rank to rank.
      quantiser: with the prefixes.
    """

    def __init__(self, encoder: Encoder, teacher: Encoder, quantiser: FakeQuantise, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.quantiser, self.dropout = encoder, quantiser, dropout
        if not quantiser.prefixes or quantiser.prefixes[-1] > encoder.sizes.native_dims:
            raise BadInput(
                f"prefixes {list(quantiser.prefixes)}: one at least, and none beyond the student's "
                f"{encoder.sizes.native_dims} values"
            )
        self.heads = nn.ModuleDict({str(k): nn.Linear(k, teacher.sizes.native_dims) for k in quantiser.prefixes})
        self._teacher = [teacher]  # in a list: not registered, so neither saved nor wrapped

    @property
    def teacher_profile(self) -> Profile:
        """By whose rules the pixels that the teacher sees must be made."""
        return self._teacher[0].profile

    def embeddings(self, given: Given) -> tuple[Tensor, ...]:
        tokens = self.encoder.raw_tokens(*given.first)
        return (embedded(self.encoder, *tokens, given.keys[0], self.dropout),)

    @torch.no_grad()
    def target(self, given: Given) -> Tensor:
        """What the teacher says of the second views, (n, its native_dims)."""
        teacher = self._teacher[0]
        self._teacher[0] = teacher = teacher.to(given.second.s2.device)
        return in_full(teacher.embed_tokens(*teacher.raw_tokens(*given.second)))

    def terms(self, embeddings: tuple[Tensor, ...], given: Given, step: int) -> dict[str, Tensor]:
        """Mean squared errors: of each prefix as "prefix <length>", and their mean as the loss."""
        target = self.target(given)
        numbers = sum_over_ranks(target.new_tensor(float(target.numel())))
        terms = {}
        for k, z in self.quantiser.cut(in_full(embeddings[0]), step).items():
            missed = in_full(self.heads[str(k)](z)) - target
            terms[f"prefix {k}"] = sum_over_ranks(missed.square().sum()) / numbers
        return {LOSS: torch.stack(list(terms.values())).mean(), **terms}
