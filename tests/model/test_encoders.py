from pathlib import Path

import numpy as np
import pytest
import torch
from small_encoders import SMALL, family_of_case, tensors_of

from model import parity, reference
from model.checkpoints import load_checkpoint
from model.encoders import DAYS, CustomGRU, day_table, encoder_of
from model.errors import BadInput
from model.families import profile_for
from model.weights import ATTENTION, EncoderSizes
from pipeline.demo.untrained import random_weights

GOLDEN = Path(__file__).parents[2] / "../shared/golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not here")
SIZES = EncoderSizes(width=24, layers=2, heads=3, feed_forward=20, hidden=28, native_dims=16, qk_norm=True)


def encoder(sizes=SIZES, seed=3, dims=None):
    weights = random_weights(sizes, seed)
    return weights, encoder_of(weights, sizes, profile_for("v2", sizes.native_dims, dims))


def run(network, inputs):
    with torch.inference_mode():
        return parity.Outputs(*(t.numpy() for t in network(*(torch.from_numpy(a) for a in inputs.values()))))


# Checkpoint, outputs, family.
PUBLISHED = [
    ("v1.0-early", "v1.0-early", "v1.0-early"),
    ("v1.0-qat", "v1.0-qat", "v1.0-qat"),
    ("v1.1-mpc", "v1.1", "v1.1-mpc"),
    ("v1.1-aws", "v1.1", "v1.1-aws"),
    ("v2", "v2", "v2"),
    ("v2-qknorm", "v2-qknorm", "v2"),
]


@needs_golden
@pytest.mark.parametrize(("file", "outputs", "family"), PUBLISHED)
def test_the_published_layout_gives_the_outputs_of_the_reference_code(file, outputs, family):
    loaded = load_checkpoint(GOLDEN / f"{file}.pt", family)
    golden = np.load(GOLDEN / f"{outputs}.npz")
    network = encoder_of(loaded.tensors, loaded.sizes, profile_for(family, loaded.sizes.native_dims))
    s2, s1 = (torch.from_numpy(golden[s]) for s in ("s2", "s1"))
    with torch.inference_mode():
        got = network.embed(s2[..., :10], s2[..., 10].long(), s1[..., :2], s1[..., 2].long()).numpy()
    rms = np.sqrt(np.mean(golden["embedding"] ** 2))
    # float32 in another order of operations is worth 2e-6 of the rms; the wrong number of heads 5e-2.
    np.testing.assert_allclose(got, golden["embedding"], rtol=0, atol=5e-6 * rms)


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("seed", [1, 2])
def test_it_gives_what_the_numpy_reference_gives(case, seed):
    sizes = SMALL[case]
    weights = tensors_of(sizes, seed)
    network = encoder_of(weights, sizes, profile_for(family_of_case(case), sizes.native_dims, 12))
    for size in ((1, 1, 1), (5, 9, 4), (3, 40, 17)):
        inputs = parity.inputs_of(*size, seed=seed)
        slow = reference.encode(weights, sizes, network.profile, inputs)
        assert parity.distance([run(network, inputs)], [slow]).ok


def test_the_own_gru_is_not_torch_s():
    """Trap T4: the same six matrices in nn.GRU's form give other states."""
    torch.manual_seed(5)
    width = 8
    own = CustomGRU(width)
    theirs = torch.nn.GRU(width, width, batch_first=True)
    with torch.no_grad():
        for name, bias in (("r", own.b_r), ("z", own.b_z), ("h", own.b_h)):
            bias.copy_(torch.randn(width))
            assert bias is dict(own.named_parameters())[f"b_{name}"]
        gates = ("r", "z", "h")
        theirs.weight_ih_l0.copy_(torch.cat([own.get_submodule(f"W_i{g}").weight for g in gates]))
        theirs.weight_hh_l0.copy_(torch.cat([own.get_submodule(f"W_h{g}").weight for g in gates]))
        theirs.bias_ih_l0.copy_(torch.cat([own.b_r, own.b_z, own.b_h]))
        theirs.bias_hh_l0.zero_()
        x = torch.randn(3, 6, width)
        difference = (own(x) - theirs(x)[0]).abs().amax((0, 2))
    # The first step differs by the update gate alone (the state is zero before it), the later ones by both.
    assert (difference > 1e-2).all()


def test_the_own_gru_keeps_its_state_where_the_update_gate_is_shut():
    width = 4
    cell = CustomGRU(width)
    with torch.no_grad():
        cell.b_z.fill_(-200.0)  # z = 0, even in float32: h' = h
        assert torch.equal(cell(torch.randn(2, 5, width)), torch.zeros(2, 5, width))
        cell.b_z.fill_(50.0)  # z = 1: h' = n, and r = 0 leaves the token's share alone
        cell.b_r.fill_(-50.0)
        x = torch.randn(2, 5, width)
        torch.testing.assert_close(cell(x), torch.tanh(x @ cell.get_submodule("W_ih").weight.T + cell.b_h))


@pytest.mark.parametrize("case", SMALL)
def test_order_matters_to_a_recurrent_pool_and_to_no_other(case):
    sizes = SMALL[case]
    network = encoder_of(tensors_of(sizes), sizes, profile_for(family_of_case(case), sizes.native_dims))
    inputs = parity.inputs_of(4, 12, 7)
    turned = {name: array[:, ::-1].copy() for name, array in inputs.items()}
    moved = parity.distance([run(network, turned)], [run(network, inputs)])
    assert moved.ok == (sizes.pooling == ATTENTION)


@pytest.mark.parametrize("case", SMALL)
def test_a_series_of_one_row_is_that_row_whatever_weighs_it(case):
    sizes = SMALL[case]
    network = encoder_of(tensors_of(sizes), sizes, profile_for(family_of_case(case), sizes.native_dims))
    x = torch.randn(3, 1, sizes.width)
    with torch.inference_mode():
        torch.testing.assert_close(network.s2_backbone.attn_pool(x), x[:, 0])


def test_a_row_of_day_0_is_zeros_after_standardisation_whatever_it_carries():
    _, network = encoder()
    inputs = parity.inputs_of(4, 6, 1)
    inputs["s1_doy"][:] = 0
    got = run(network, inputs).embedding
    s2_doy = torch.from_numpy(inputs["s2_doy"]).long()
    x2 = network.standardise(torch.from_numpy(inputs["s2"]), s2_doy, network.s2_mean, network.s2_std)
    with torch.inference_mode():
        empty = network.embed(x2, s2_doy, torch.zeros(4, 1, 2), torch.zeros(4, 1, dtype=torch.long)).numpy()
    np.testing.assert_array_equal(got, empty)


def test_each_orbit_is_standardised_by_its_own_statistics():
    _, network = encoder()
    profile = network.profile
    inputs = parity.inputs_of(2, 3, 2)
    inputs["s1_doy"][:] = 100
    inputs["s1_orbit"][:] = [0, 1]
    orbit = torch.from_numpy(inputs["s1_orbit"]).long()
    x = network.standardise(
        torch.from_numpy(inputs["s1"]), torch.full((2, 2), 100), network.s1_mean[orbit], network.s1_std[orbit]
    )
    ascending = (inputs["s1"][:, 0] - np.array(profile.s1_ascending_mean)) / profile.s1_ascending_std
    descending = (inputs["s1"][:, 1] - np.array(profile.s1_descending_mean)) / profile.s1_descending_std
    np.testing.assert_allclose(x.numpy(), np.stack([ascending, descending], 1), rtol=1e-5, atol=1e-6)


def test_the_day_table_is_the_sinusoid_of_the_raw_day():
    table = day_table(8).numpy()
    day, pair = 366, np.arange(4)
    angle = day / 10_000 ** (2 * pair / 8)
    assert table.shape == (DAYS, 8)
    np.testing.assert_allclose(table[day, 0::2], np.sin(angle), atol=5e-5)
    np.testing.assert_allclose(table[day, 1::2], np.cos(angle), atol=5e-5)


def test_the_full_output_has_mean_0_and_deviation_1():
    _, network = encoder()
    z = run(network, parity.inputs_of(6, 8, 8)).embedding
    np.testing.assert_allclose(z.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(z.std(-1), 1, atol=1e-4)


def test_weights_of_another_size_are_refused():
    weights = random_weights(SIZES, 1)
    other = EncoderSizes(24, 1, 3, 20, 28, 16, True)
    with pytest.raises(BadInput, match=r"unexpected s2_backbone.transformer_encoder.1"):
        encoder_of(weights, other, profile_for("v2", 16))
