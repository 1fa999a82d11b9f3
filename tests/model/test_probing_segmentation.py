import numpy as np
import pytest

torch = pytest.importorskip("torch")

from model.errors import BadInput  # noqa: E402
from model.probing import segmentation  # noqa: E402
from model.probing.evaluate import MODEL, Source, experiment, interval  # noqa: E402
from model.probing.labels import SEGMENTATION, Labels  # noqa: E402
from model.probing.segmentation import HEADS, PatchTask, UNet, patches_of  # noqa: E402
from model.probing.splits import Budget  # noqa: E402

SIDE = 10


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A narrower UNet and fewer steps are enough for what is planted here."""
    monkeypatch.setattr(segmentation, "WIDTH", 8)
    monkeypatch.setattr(segmentation, "STEPS", 60)


def patches(n=12, side=SIDE, signal=2.0, seed=0, drop=0):
    """Patches cut in two by a line; the features say on which side a pixel lies. Labels and features (N, 6)."""
    rng = np.random.default_rng(seed)
    rows, cols = (v.ravel() for v in np.mgrid[:side, :side])
    label, x = [], []
    for _ in range(n):
        a, b = rng.normal(size=2)
        where = (a * (rows - side / 2) + b * (cols - side / 2) > rng.normal()).astype(int)
        label += where.tolist()
        x.append(rng.normal(size=(side * side, 6)) + signal * where[:, None] * [1, 0, 0, 0, 0, 0])
    patch = np.repeat([f"p{i:02d}" for i in range(n)], side * side)
    kept = np.ones(len(patch), bool)
    if drop:
        kept[rng.choice(len(patch), drop, False)] = False
    values = {
        "record": np.arange(len(patch)), "label": np.array(["water", "land"])[label], "group": patch,
        "lon": np.zeros(len(patch)), "lat": np.zeros(len(patch)), "patch": patch,
        "row": np.tile(rows, n).astype(np.int32), "col": np.tile(cols, n).astype(np.int32),
    }  # fmt: skip
    labels = Labels("made up", SEGMENTATION, test=None, **{k: v[kept] for k, v in values.items()})
    return labels, np.concatenate(x).astype(np.float32)[kept]


def test_records_come_to_their_places_and_the_rest_is_outside():
    labels, _ = patches(3, drop=40)
    made = patches_of(labels)
    assert made.at.shape == (3, 12, 12)  # a multiple of four
    for p, row, col in np.argwhere(made.at >= 0):
        i = made.at[p, row, col]
        assert (labels.patch[i], labels.row[i], labels.col[i]) == (made.names[p], row, col)
    assert (made.at >= 0).sum() == len(labels)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_finds_planted_regions(head):
    labels, x = patches(drop=50)
    run = next(experiment(PatchTask(labels), [Budget(share=1.0)], 1).run(Source("x", MODEL, (x,)), [head]))
    assert interval(run, "mean_iou").mean > (0.75 if head == "unet" else 0.6)


def test_the_unet_uses_the_neighbours():
    labels, x = patches(n=20, signal=1.0)
    made = experiment(PatchTask(labels), [Budget(share=1.0)], 1)
    unet, alone = (interval(next(made.run(Source("x", MODEL, (x,)), [h])), "mean_iou").mean for h in HEADS)
    assert unet > alone + 0.05


@pytest.mark.parametrize("head", [pytest.param("unet", marks=pytest.mark.slow), "linear"])
def test_labels_of_another_patch_score_at_chance(head):
    labels, x = patches(signal=3.0)
    turned = np.roll(labels.label, 5 * SIDE * SIDE + 3)
    wrong = Labels(**vars(labels) | {"label": turned})
    run = next(experiment(PatchTask(wrong), [Budget(share=1.0)], 2).run(Source("x", MODEL, (x,)), [head]))
    assert interval(run, "mean_iou").mean < 0.45  # two classes of a half each, guessed: 1 / 3


def test_a_patch_is_never_on_both_sides_and_all_its_pixels_are_counted():
    labels, x = patches(n=9)
    task = PatchTask(labels)
    made = experiment(task, [Budget(share=0.5)], 2)
    run = next(made.run(Source("x", MODEL, (x,)), ["linear"]))
    assert run.sums[0].sum() == len(made.splits[0].test) * SIDE * SIDE
    assert not set(made.splits[0].test.tolist()) & set(made.splits[0].train.tolist())


def test_two_fits_with_one_seed_are_alike_and_the_global_generator_is_left_alone(monkeypatch):
    labels, x = patches(n=6)
    monkeypatch.setattr(segmentation, "STEPS", 5)
    made = experiment(PatchTask(labels), [Budget(share=1.0)], 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = (next(made.run(Source("x", MODEL, (x,)), ["unet"])).sums for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert torch.equal(before, torch.get_rng_state())


def test_the_unet_gives_a_class_to_every_pixel():
    assert UNet(6, 3, 8)(torch.zeros(2, 6, 12, 8)).shape == (2, 3, 12, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"row": lambda v: np.zeros_like(v)}, "two records lie in one place"),
        ({"row": lambda v: v - 1}, "counted from 0"),
        ({"group": lambda v: np.where(np.arange(len(v)) % 2, v, "other")}, "two groups"),
    ],
)
def test_patches_that_contradict_themselves_are_refused(change, words):
    labels, _ = patches(2)
    wrong = Labels(**vars(labels) | {k: f(getattr(labels, k)) for k, f in change.items()})
    with pytest.raises(BadInput, match=words):
        PatchTask(wrong)
