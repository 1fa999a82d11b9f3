"""QAT: the deployed quantiser inside the training, so that what is trained on is what codes and scales will give."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.errors import BadInput
from model.losses.reduce import in_full
from model.profile import Profile
from model.quantise import CODE_MAX, SCALE_FLOOR


def fake_quantise(z: Tensor, floor: float = SCALE_FLOOR, floor_of: str = "largest") -> Tensor:
    """The values that the codes of each pixel will stand for, with the gradient of `z` itself (straight through).

    The rule is that of `model.quantise` to the bit: each row against its own largest value, -127..127, half to even.
    The scale gives no gradient. Nothing is clipped that the gradient should know of: no value is beyond its row's scale
    by more than float32 rounds. TESSERA's own training has one scale for the whole batch, which is deployed nowhere.

    Args:
      z: (.., dims); narrower types are computed in float32, as the deployed graph does.
      floor, floor_of: the profile's `scale_floor`, as in `model.quantise.quantise`.

    Returns:
      (.., dims) float32, as float64 where `z` is. NaN in a row stays: a damaged training must show.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = in_full(z)
        with torch.no_grad():
            x = z.float()
            largest = x.abs().amax(-1, keepdim=True)
            if floor_of == "scale":
                scale = (largest / CODE_MAX).clamp(min=floor)
            else:
                scale = largest.clamp(min=floor) / CODE_MAX
            values = (x / scale).round().clamp(-CODE_MAX, CODE_MAX) * scale
        return values.to(z.dtype) + (z - z.detach())  # adds exact zeros; z + (values - z) would round


class FakeQuantise(nn.Module):
    """`fake_quantise` from a step of the training on, of the whole embedding and of each of its prefixes.

    The step is an argument of every call, not a switch that is set from outside: an attribute that is set on the
    wrapper of a distributed module is taken without a word, and never reaches the module inside.

    Args:
      start: the first step, from 0, at which it is active; None for never.
      prefixes: lengths at which the embedding may be cut; each is quantised by its own scale, as a file that stores so
        many dimensions would.
      profile: whose floor of the scale is taken; v2's without one.

    Raises:
      BadInput: a start below 0, lengths that are not ascending, or a profile whose codes are not -127..127.
    """

    def __init__(self, start: int | None, prefixes: Sequence[int] = (), profile: Profile | None = None) -> None:
        super().__init__()
        if start is not None and start < 0:
            raise BadInput(f"quantisation from step {start} on: steps are counted from 0")
        if any(k < 1 for k in prefixes) or list(prefixes) != sorted(set(prefixes)):
            raise BadInput(f"prefixes {list(prefixes)}: they must be ascending and above 0")
        if profile is not None and (profile.code_min, profile.code_max) != (-CODE_MAX, CODE_MAX):
            raise BadInput(
                f"profile {profile.name}: codes {profile.code_min}..{profile.code_max}, "
                f"but the quantiser makes {-CODE_MAX}..{CODE_MAX}"
            )
        self.start, self.prefixes = start, tuple(prefixes)
        self.floor = profile.scale_floor if profile else SCALE_FLOOR
        self.floor_of = profile.scale_floor_of if profile else "largest"

    def active(self, step: int) -> bool:
        """Whether it does anything at this step."""
        return self.start is not None and step >= self.start

    def forward(self, z: Tensor, step: int) -> Tensor:
        """(N, dims) to (N, dims): unchanged before `start`, float32 values of codes from then on."""
        return fake_quantise(z, self.floor, self.floor_of) if self.active(step) else z

    def cut(self, z: Tensor, step: int) -> dict[int, Tensor]:
        """Each prefix of (N, dims), cut before its scale is made: {length: (N, length)}.

        Raises:
          BadInput: a prefix longer than the embedding.
        """
        if self.prefixes and self.prefixes[-1] > z.shape[-1]:
            raise BadInput(f"prefix of {self.prefixes[-1]} values: the embedding has {z.shape[-1]}")
        return {k: self(z[..., :k], step) for k in self.prefixes}
