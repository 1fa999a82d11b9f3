"""Small encoders of every family, with weights of which none is zero or one, for tests."""

import numpy as np

from model.weights import CUSTOM_GRU, TORCH_GRU, EncoderSizes, tensor_shapes

# By profile name; odd and unequal numbers, so that no axis can be taken for another.
SMALL = {
    "v1.0-early": EncoderSizes(24, 2, 3, 20, 0, 14, False, TORCH_GRU, False),
    "v1.0-qat": EncoderSizes(24, 2, 4, 20, 0, 14, False, CUSTOM_GRU, False),
    "v1.1-mpc": EncoderSizes(16, 2, 4, 28, 22, 12, False, CUSTOM_GRU, False),
    "v1.1-aws": EncoderSizes(16, 1, 2, 28, 22, 12, False, CUSTOM_GRU, False),
    "v2": EncoderSizes(24, 2, 3, 20, 28, 16, False),
    "v2 with QK-norm": EncoderSizes(24, 2, 3, 20, 28, 16, True),
}


def family_of_case(case):
    return case.split(" ")[0]


def tensors_of(sizes, seed=1):
    """Seeded numbers: matrices that keep the variance, norms near 1, biases that matter."""
    random = np.random.RandomState(seed)  # the legacy generator's stream is frozen
    tensors = {}
    for name, shape in tensor_shapes(sizes).items():
        if len(shape) > 1:
            numbers = random.uniform(-1, 1, shape) * np.sqrt(3.0 / shape[1])
        elif name.endswith(".weight"):  # of a norm
            numbers = random.uniform(0.6, 1.4, shape)
        else:
            numbers = random.uniform(-0.4, 0.4, shape)
        tensors[name] = numbers.astype(np.float32)
    return tensors
