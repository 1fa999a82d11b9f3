import dataclasses
from pathlib import Path

import numpy as np
import pytest
from records_made import records

torch = pytest.importorskip("torch")

from model.errors import BadInput  # noqa: E402
from model.probing import presto  # noqa: E402
from model.probing.presto import Inputs, embed, inputs_of, read_weights  # noqa: E402
from model.shards import write_set  # noqa: E402

WEIGHTS = Path(__file__).parents[2] / "../shared/real-data/nasaharvest-presto/default_model.pt"
real = pytest.mark.skipif(not WEIGHTS.is_file(), reason="no published weights of Presto in ../shared/real-data")
GROUPS = ((0, 1), (2, 3, 4), (5, 6, 7), (8,), (9,), (10, 11), (12, 13), (14, 15), (16,))
NAMES = ("S1", "S2_RGB", "S2_Red_Edge", "S2_NIR_10m", "S2_NIR_20m", "S2_SWIR", "ERA5", "SRTM", "NDVI")


def made_up_weights(seed=0):
    """The published names and shapes with small random numbers."""
    rng = np.random.default_rng(seed)
    shapes = {"pos_embed": (1, 24, 64), "month_embed.weight": (12, 32), "channel_embed.weight": (10, 32),
              "dw_embed.weight": (10, 128)}  # fmt: skip
    linear = {f"eo_patch_embed.{n}": (128, len(g)) for n, g in zip(NAMES, GROUPS, strict=True)} | {
        "latlon_embed": (128, 3)
    }
    for layer in range(2):
        at = f"blocks.{layer}."
        linear |= {f"{at}attn.qkv": (384, 128), f"{at}attn.proj": (128, 128), f"{at}mlp.fc1": (512, 128)}
        linear |= {f"{at}mlp.fc2": (128, 512)}
        shapes |= {f"{at}{norm}.{part}": (128,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
    shapes |= {"norm.weight": (128,), "norm.bias": (128,)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    scale = {k: 1.0 if len(s) == 1 else 1 / np.sqrt(s[-1]) for k, s in shapes.items()}
    return {k: torch.from_numpy(rng.normal(size=s) * scale[k] * 0.7).float() for k, s in shapes.items()}


def norm(x, weight, bias):
    x = x - x.mean()
    return x / np.sqrt((x**2).mean() + 1e-5) * weight + bias


def slowly(weights, inputs, i):
    """One pixel in float64, token by token; what is not known is never made a token."""
    w = {k: v.double().numpy() for k, v in weights.items()}
    shift = [25, 25] + [0] * 10 + [-272.15, 0, 0, 0]
    scale = [25, 25] + [1e4] * 10 + [35, 0.03, 2000, 50]
    steps = inputs.x.shape[1]
    lat, lon = np.deg2rad(inputs.lat[i]), np.deg2rad(inputs.lon[i])
    place = np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    tokens = [w["latlon_embed.weight"] @ place + w["latlon_embed.bias"]]
    for channel, (name, group) in enumerate(zip(NAMES, GROUPS, strict=True)):
        for t in range(1 if name == "SRTM" else steps):
            raw = inputs.x[i, t].astype(float)
            x = np.array([(raw[b] + shift[b]) / scale[b] for b in range(16)] + [0.0])
            x[16] = (x[8] - x[4]) / (x[8] + x[4]) if x[8] + x[4] > 0 else 0.0
            if any(np.isnan(raw[b]) for b in group if b != 16) or (name == "NDVI" and np.isnan(x[8] + x[4])):
                continue
            embedding = w[f"eo_patch_embed.{name}.weight"] @ x[list(group)] + w[f"eo_patch_embed.{name}.bias"]
            month = w["month_embed.weight"][inputs.month[i, t]]
            at = w["pos_embed"][0, t]
            if name == "SRTM":
                month, at = 0 * month, 0 * at
            tokens.append(embedding + np.concatenate([month, w["channel_embed.weight"][channel], at]))
    for t in range(steps):
        if inputs.cover[i, t] != 9:
            where = [w["month_embed.weight"][inputs.month[i, t]], w["channel_embed.weight"][9], w["pos_embed"][0, t]]
            tokens.append(w["dw_embed.weight"][inputs.cover[i, t]] + np.concatenate(where))
    z = np.array(tokens)
    for layer in range(2):
        at = f"blocks.{layer}."
        normed = np.array([norm(row, w[f"{at}norm1.weight"], w[f"{at}norm1.bias"]) for row in z])
        qkv = normed @ w[f"{at}attn.qkv.weight"].T + w[f"{at}attn.qkv.bias"]
        seen = np.zeros_like(z)
        for head in range(8):
            q, k, v = (qkv[:, part * 128 + head * 16 : part * 128 + head * 16 + 16] for part in range(3))
            weight = np.exp(q @ k.T / 4)
            seen[:, head * 16 : head * 16 + 16] = weight @ v / weight.sum(1, keepdims=True)
        z = z + seen @ w[f"{at}attn.proj.weight"].T + w[f"{at}attn.proj.bias"]
        normed = np.array([norm(row, w[f"{at}norm2.weight"], w[f"{at}norm2.bias"]) for row in z])
        inner = torch.nn.functional.gelu(torch.from_numpy(normed @ w[f"{at}mlp.fc1.weight"].T + w[f"{at}mlp.fc1.bias"]))
        z = z + inner.numpy() @ w[f"{at}mlp.fc2.weight"].T + w[f"{at}mlp.fc2.bias"]
    return norm(z.mean(0), w["norm.weight"], w["norm.bias"])


def inputs(n=4, steps=5, seed=0):
    rng = np.random.default_rng(seed)
    x = np.concatenate([
        rng.uniform(-25, 0, (n, steps, 2)), rng.uniform(200, 5000, (n, steps, 10)),
        rng.uniform(265, 300, (n, steps, 1)), rng.uniform(0, 0.02, (n, steps, 1)), rng.uniform(0, 900, (n, steps, 2)),
        np.zeros((n, steps, 1)),
    ], axis=-1).astype(np.float32)  # fmt: skip
    cover = rng.integers(0, 10, (n, steps))
    month = rng.integers(0, 12, (n, steps))
    return Inputs(x, month, cover, rng.uniform(-60, 60, n), rng.uniform(-180, 180, n))


def gapped():
    made = inputs()
    made.x[1, 2, 3] = made.x[1, 0, 8] = np.nan  # a band of a group, and what NDVI is made of
    made.x[2, :, 12:16] = np.nan
    made.x[3, :, :2] = np.nan
    return made


@pytest.mark.parametrize("what", [inputs, gapped])
def test_the_embedding_is_that_of_one_pixel_and_token_at_a_time(what):
    weights, made = made_up_weights(), what()
    got = embed(weights, made)
    for i in range(len(got)):
        np.testing.assert_allclose(got[i], slowly(weights, made, i), atol=2e-5)


@real
def test_the_published_weights_are_read_and_agree_with_the_slow_forward():
    weights, made = read_weights(WEIGHTS), gapped()
    got = embed(weights, made)
    for i in range(len(got)):
        np.testing.assert_allclose(got[i], slowly(weights, made, i), atol=1e-4)


def test_what_stands_in_place_of_unknown_values_does_not_matter():
    weights, made = made_up_weights(), inputs()
    made.cover[:] = presto.NO_COVER
    made.x[..., 12:16] = np.nan
    first = embed(weights, made)
    weights["dw_embed.weight"][9] += 100
    weights["eo_patch_embed.ERA5.bias"] += 100
    np.testing.assert_array_equal(embed(weights, made), first)


def test_a_pixel_does_not_depend_on_its_neighbours():
    weights, made = made_up_weights(), gapped()
    alone = Inputs(*(getattr(made, f.name)[2:3] for f in dataclasses.fields(made)))
    np.testing.assert_allclose(embed(weights, alone)[0], embed(weights, made)[2], atol=1e-5)


def test_records_become_months_in_prestos_units_and_bands(tmp_path):
    shards = write_set(tmp_path / "s", [records()], profile_name="v2", period="2024", origin={})
    batch = shards.take(np.arange(len(shards)))
    made = inputs_of(batch, np.zeros(len(batch)), np.zeros(len(batch)))
    assert np.isnan(made.x[..., 12:16]).all() and (made.cover == 9).all()
    i = 0
    seen = batch.s2_valid[i]
    month = presto.baselines.month_of(batch.s2_doy[i][seen])
    first = batch.s2[i][seen][month == month[0]]
    # The profile's bands: B04 B02 B03 B08 B8A B05 B06 B07 B11 B12.
    for band, column in (("B02", 1), ("B04", 0), ("B8A", 4), ("B12", 9)):
        got = made.x[i, month[0], presto.BANDS.index(band)]
        assert got == pytest.approx(np.median(first[:, column]))
    radar = batch.s1[:, :, 0][batch.s1_valid]
    decibels = made.x[..., 0][~np.isnan(made.x[..., 0])]
    assert decibels.min() >= (radar.min() / 200 - 50) / 2 and decibels.max() <= (radar.max() / 200 - 50) / 2


def test_pixels_without_a_place_are_refused_for_presto_takes_it_always(tmp_path):
    shards = write_set(tmp_path / "s", [records(3)], profile_name="v2", period="2024", origin={})
    with pytest.raises(BadInput, match="no coordinates"):
        inputs_of(shards.take(np.arange(3)), np.full(3, np.nan), np.zeros(3))


def test_other_weights_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no weights of Presto"):
        read_weights(tmp_path / "no.pt")
    small = {f"encoder.{n}": torch.zeros(2, 2) for n in ("latlon_embed.weight", "channel_embed.weight", "pos_embed")}
    torch.save(small, tmp_path / "a.pt")
    torch.save({"encoder.pos_embed": torch.zeros(2, 2)}, tmp_path / "b.pt")
    for file, words in (("a.pt", "another size"), ("b.pt", "does not hold Presto's weights")):
        with pytest.raises(BadInput, match=words):
            read_weights(tmp_path / file)
