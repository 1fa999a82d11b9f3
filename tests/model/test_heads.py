import itertools
import math

import pytest
import torch
from torch import nn

from model.errors import BadInput
from model.heads import BatchNorm, Projector, parameter_count, projector_memory
from model.losses.barlow import barlow
from model.losses.mix import barlow_with_mix, draw_mixing


def test_the_norm_is_torch_s_own_in_one_process_in_both_directions():
    torch.manual_seed(1)
    x = torch.randn(12, 5, dtype=torch.float64) * 3 + 7
    weight, bias, grad = torch.randn(5).double(), torch.randn(5).double(), torch.randn(12, 5).double()
    results = []
    for norm in (BatchNorm(5).double(), nn.BatchNorm1d(5).double()):
        with torch.no_grad():
            norm.weight.copy_(weight)
            norm.bias.copy_(bias)
        y = x.clone().requires_grad_()
        out = norm(y)
        out.backward(grad)
        results.append((out.detach(), y.grad, norm.weight.grad, norm.bias.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_layers_have_no_bias_and_norms_stand_between_them_alone():
    kinds = [type(m) for m in Projector((4, 8, 6, 10))]
    assert kinds == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear, BatchNorm, nn.ReLU, nn.Linear]
    projector = Projector((4, 8, 6, 10))
    assert all(m.bias is None for m in projector if isinstance(m, nn.Linear))
    assert projector(torch.randn(5, 4)).shape == (5, 10)
    assert not list(projector.buffers())  # nothing that a checkpoint would have to carry beside the weights


def test_a_projector_gives_the_same_in_training_and_evaluation():
    projector, x = Projector((4, 8, 6)), torch.randn(9, 4)
    assert torch.equal(projector.train()(x), projector.eval()(x))


@pytest.mark.parametrize("widths", [(4, 7), (4, 8, 6), (16, 12, 12, 12, 20)])
def test_parameters_are_counted_without_making_them(widths):
    assert parameter_count(widths) == sum(p.numel() for p in Projector(widths).parameters())


def test_the_paper_s_projector_has_1_34_billion_parameters():
    assert parameter_count((128, *[16384] * 6)) == pytest.approx(1.344e9, rel=1e-3)


@pytest.mark.parametrize("widths", [(4,), (), (4, 0), (4, 8, -1)])
def test_widths_that_make_no_projector_are_refused(widths):
    for what in (Projector, parameter_count):
        with pytest.raises(BadInput, match="projector widths"):
            what(widths)
    with pytest.raises(BadInput, match="0 rows"):
        projector_memory((4, 8), 0)


def kept_bytes(widths, rows, mixed, half):
    """(activations, correlation): what autograd holds for the way back, each storage once, without parameters."""
    torch.manual_seed(1)
    projector = Projector(widths)
    own = {p.untyped_storage().data_ptr() for p in projector.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tuple(tensor.shape))
            alive.append(tensor)  # so that no address is used twice
        return tensor

    z = [torch.randn(rows, widths[0]) for _ in range(3 if mixed else 2)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            p = [projector(x.requires_grad_()) for x in z]
        loss = barlow_with_mix(*p, draw_mixing(rows, 1, 1)) if mixed else barlow(*p)
    square = {(widths[-1], widths[-1])}
    weights = {(b, a) for a, b in itertools.pairwise(widths)} | set(itertools.pairwise(widths))
    correlation = sum(n for n, shape in kept.values() if shape in square)
    activations = sum(n for n, shape in kept.values() if shape not in square | weights)
    assert loss.total.item() > 0
    return activations, correlation


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_the_memory_sum_is_what_autograd_keeps(mixed, half):
    widths, rows = (32, 96, 112, 128), 200
    activations, correlation = kept_bytes(widths, rows, mixed, half)
    memory = projector_memory(widths, rows, mixed=mixed, half=half)
    assert correlation == memory.correlation
    assert activations == pytest.approx(memory.activations, rel=0.02)  # means and deviations are not counted


def test_weights_gradients_and_optimiser_are_four_numbers_a_parameter():
    projector = Projector((4, 8, 6))
    optimiser = torch.optim.AdamW(projector.parameters())
    barlow(projector(torch.randn(9, 4)), projector(torch.randn(9, 4))).total.backward()
    optimiser.step()
    memory = projector_memory((4, 8, 6), 9)
    parameters = list(projector.parameters())
    assert sum(p.nbytes for p in parameters) == memory.weights
    assert sum(p.grad.nbytes for p in parameters) == memory.gradients
    states = [t for s in optimiser.state.values() for t in s.values() if t.dim()]
    assert sum(t.nbytes for t in states) == memory.optimiser


def test_splitting_divides_the_correlation_and_sharding_the_weights():
    widths = (128, 4096, 4096, 4096)
    whole = projector_memory(widths, 256, ranks=8)
    split = projector_memory(widths, 256, ranks=8, split=True)
    sharded = projector_memory(widths, 256, ranks=8, weight_shards=8)
    assert split.correlation * 8 == whole.correlation and split.gathered > whole.gathered
    assert sharded.optimiser == math.ceil(whole.parameters / 8) * 8 and sharded.activations == whole.activations
    assert whole.total == sum(
        (whole.weights, whole.gradients, whole.optimiser, whole.copies, whole.activations, whole.correlation,
         whole.gathered)
    )  # fmt: skip
