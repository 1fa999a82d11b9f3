from pathlib import Path

import numpy as np
import pytest
import torch

from model import parity, reference
from model.checkpoints import load_v2
from model.encoders import DAYS, day_table, encoder_of
from model.errors import BadInput
from model.families import profile_for
from model.weights import EncoderSizes
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


@needs_golden
@pytest.mark.parametrize("name", ["v2", "v2-qknorm"])
def test_the_published_layout_gives_the_outputs_of_the_reference_code(name):
    loaded = load_v2(GOLDEN / f"{name}.pt")
    golden = np.load(GOLDEN / f"{name}.npz")
    network = encoder_of(loaded.tensors, loaded.sizes, profile_for("v2", loaded.sizes.native_dims))
    s2, s1 = (torch.from_numpy(golden[s]) for s in ("s2", "s1"))
    with torch.inference_mode():
        got = network.embed(s2[..., :10], s2[..., 10].long(), s1[..., :2], s1[..., 2].long()).numpy()
    # The outputs' rms is 1; float32 in another order of operations is worth 2e-6, a wrong epsilon 9e-6.
    np.testing.assert_allclose(got, golden["embedding"], rtol=0, atol=4e-6)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_it_gives_what_the_numpy_reference_gives(qk_norm):
    sizes = EncoderSizes(24, 2, 3, 20, 28, 16, qk_norm)
    weights, network = encoder(sizes, dims=12)
    for size in ((1, 1, 1), (5, 9, 4), (3, 40, 17)):
        inputs = parity.inputs_of(*size)
        slow = reference.encode(weights, sizes, network.profile, inputs)
        assert parity.distance([run(network, inputs)], [slow]).ok


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
