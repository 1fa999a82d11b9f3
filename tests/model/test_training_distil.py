"""Students of a frozen teacher, and embeddings turned by their variance."""

import numpy as np
import pytest
import torch
from small_encoders import SMALL, tensors_of
from training_sets import config_for, small_set

from model import parity
from model.checkpoints import Checkpoint, load_checkpoint
from model.encoders import encoder_of
from model.errors import BadInput
from model.families import profile_for
from model.qat import FakeQuantise
from model.quantise import dequantise, quantise
from model.shards import open_shards
from model.training import progress
from model.training.distil import Student, teacher_of
from model.training.feed import feed
from model.training.loop import given_of
from model.training.rotate import rotated, rotation_of
from model.training.run import build, profile_of, run
from pipeline.model import export_model

STUDENT = ("distil.prefixes=[2, 4, 8]", "qat.start=0.0", "encoder.dropout=0.0")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_set(tmp_path_factory.mktemp("set") / "shards").folder


@pytest.fixture(scope="module")
def teacher(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher")
    run(config_for(shards, "encoder.native-dims=10", "schedule.steps=12"), out)
    return out / "last.pt"


def test_the_loss_is_the_mean_over_prefixes_of_what_their_heads_miss_of_the_whole_teacher(shards, teacher):
    config = config_for(shards, f"distil.teacher={teacher}", *STUDENT)
    opened = open_shards(shards)
    built = build(config, profile_of(config, opened), 8)
    fed = next(iter(feed(opened, built.draw, 3, 14, range(1))))
    given = given_of(fed, config, torch.device("cpu"))
    terms, z = built.objective(given, 0)
    master = teacher_of(load_checkpoint(teacher))
    with torch.no_grad():
        target = master(*given.second)[2].numpy()
    assert target.shape == (14, 10)
    errors = []
    for k in (2, 4, 8):
        head = built.objective.heads[str(k)]
        values = dequantise(*quantise(z[:, :k].numpy()))
        made = values @ head.weight.detach().numpy().T + head.bias.detach().numpy()
        errors.append(np.mean((made - target) ** 2))
        assert terms[f"prefix {k}"].item() == pytest.approx(errors[-1], rel=1e-4)
    assert terms["loss"].item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_a_student_learns_the_more_the_longer_its_prefix_and_leaves_the_teacher_alone(shards, teacher, tmp_path):
    before = teacher.read_bytes()
    long = ("schedule.steps=150", "run.log-every=150", "run.save-every=150")
    run(config_for(shards, f"distil.teacher={teacher}", *STUDENT, *long), tmp_path)
    run(config_for(shards, f"distil.teacher={teacher}", *STUDENT, "schedule.steps=1"), tmp_path / "one")
    first, last = progress.read(tmp_path / "one")[0], progress.read(tmp_path)[-1]
    assert last["loss"] < 0.7 * first["loss"]
    assert last["prefix 8"] < last["prefix 4"] < last["prefix 2"]
    assert teacher.read_bytes() == before
    student = load_checkpoint(tmp_path / "last.pt")
    assert student.prefixes == (2, 4, 8) and student.record.training["teacher_sha256"]
    assert not any("head" in name for name in student.tensors)


def test_a_student_s_file_may_be_cut_at_its_prefixes_and_nowhere_else(shards, teacher, tmp_path):
    from pipeline.model import Shape

    run(config_for(shards, f"distil.teacher={teacher}", *STUDENT, "schedule.steps=1"), tmp_path)
    assert export_model(tmp_path / "last.pt", tmp_path / "m.onnx", Shape(dims=4))["dims"] == 4
    with pytest.raises(BadInput, match="trained to be cut at 2, 4, 8"):
        export_model(tmp_path / "last.pt", tmp_path / "n.onnx", Shape(dims=3))
    run(config_for(shards, "schedule.steps=1"), tmp_path / "plain")
    with pytest.raises(BadInput, match="trained to be cut at 8"):
        export_model(tmp_path / "plain" / "last.pt", tmp_path / "n.onnx", Shape(dims=4))


def test_another_teacher_is_another_training_and_a_wrong_one_is_refused(shards, teacher, tmp_path):
    config = [f"distil.teacher={teacher}", *STUDENT, "schedule.steps=2"]
    asked = iter([True])
    run(config_for(shards, *config), tmp_path, stop=lambda: next(asked))
    other = teacher.with_name("untrained.pt")
    with pytest.raises(BadInput, match="the teacher is another file"):
        run(config_for(shards, *config, f"distil.teacher={other}"), tmp_path)
    with pytest.raises(BadInput, match=r"teacher-sha256 is abc"):
        run(config_for(shards, *config, "distil.teacher-sha256=abc"), tmp_path / "x")
    with pytest.raises(BadInput, match=r"no checkpoint at .*none.pt"):
        run(config_for(shards, *config, "distil.teacher=none.pt"), tmp_path / "x")


def test_a_teacher_is_not_shown_pixels_that_were_made_by_other_rules_than_its_own(shards, tmp_path):
    radar_by_other_rules = small_set(tmp_path / "aws", profile="v1.1-aws").folder
    family = ("encoder.family=v1.1-aws", "schedule.steps=1")
    run(config_for(radar_by_other_rules, *family), tmp_path / "teacher")
    config = [f"distil.teacher={tmp_path / 'teacher' / 'last.pt'}", *STUDENT, "schedule.steps=1"]
    said = r"made for v2, whose s1_order, s1_arithmetic, s1_resampling are not those of \[distil\] teacher"
    with pytest.raises(BadInput, match=said):
        run(config_for(shards, *config), tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_published_teacher_has_the_rules_of_the_variant_that_was_named():
    sizes = SMALL["v1.1-mpc"]
    published = Checkpoint(tensors_of(sizes), sizes, {}, family="v1.1-mpc")
    assert teacher_of(published).profile.s2_resampling == "bilinear"
    assert teacher_of(published, "v1.1-mpc+nearest").profile.s2_resampling == "nearest"


def test_prefixes_beyond_the_student_are_refused():
    sizes = SMALL["v2"]
    encoder = encoder_of(tensors_of(sizes), sizes, profile_for("v2", sizes.native_dims))
    for prefixes in ((), (8, 32)):
        with pytest.raises(BadInput, match="one at least, and none beyond the student's 16"):
            Student(encoder, encoder, FakeQuantise(0, prefixes))


def embeddings(tensors, sizes, family, count=300):
    inputs = parity.inputs_of(count, 6, 5, seed=4)
    network = encoder_of(tensors, sizes, profile_for(family, sizes.native_dims))
    with torch.inference_mode():
        return network.embed_tokens(*network.raw_tokens(*(torch.from_numpy(a) for a in inputs.values()))).numpy()


@pytest.mark.parametrize("family", ["v1.0-early", "v1.0-qat", "v1.1-mpc"])
def test_a_rotation_in_the_weights_turns_the_embeddings_and_orders_them_by_variance(family):
    sizes = SMALL[family]
    tensors = tensors_of(sizes)
    z = embeddings(tensors, sizes, family)
    rotation = rotation_of([z[:100], z[100:]])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(sizes.native_dims), atol=1e-12)
    turned = embeddings(rotated(tensors, sizes, rotation), sizes, family)
    np.testing.assert_allclose(turned, z @ rotation.T, atol=1e-5 * np.abs(z).max())
    covariance = np.cov(turned.T)
    variance = covariance.diagonal()
    assert (np.diff(variance) <= 1e-6 * variance[0]).all()
    assert np.abs(covariance - np.diag(variance)).max() < 1e-5 * variance[0]
    distance = np.linalg.norm(z[:, None] - z, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(turned[:, None] - turned, axis=-1), distance, atol=1e-3)


def test_no_k_directions_hold_more_than_a_rotated_embedding_s_first_k():
    """Against prefixes of the embedding as it was, and of random turns of it."""
    sizes = SMALL["v1.1-mpc"]
    z = embeddings(tensors_of(sizes), sizes, "v1.1-mpc")
    z = z - z.mean(0)
    kept = np.square(z @ rotation_of([z]).T).sum(0).cumsum()
    random = np.random.RandomState(1)
    for other in (np.eye(sizes.native_dims), *(np.linalg.qr(random.normal(size=(12, 12)))[0] for _ in range(20))):
        assert (kept * (1 + 1e-9) >= np.square(z @ other.T).sum(0).cumsum()).all()


def test_what_cannot_be_turned_is_refused():
    sizes = SMALL["v2"]
    with pytest.raises(BadInput, match="LayerNorm, behind which no weights stand"):
        rotated(tensors_of(sizes), sizes, np.eye(16))
    early = SMALL["v1.0-early"]
    with pytest.raises(BadInput, match=r"orthogonal matrix \(14, 14\)"):
        rotated(tensors_of(early), early, np.ones((14, 14)))
    with pytest.raises(BadInput, match="no embeddings"):
        rotation_of([])
    with pytest.raises(BadInput, match="NaN"):
        rotation_of([np.full((3, 2), np.nan)])


def test_a_training_leaves_a_rotated_file_where_that_is_asked(shards, tmp_path):
    family = ("encoder.family=v1.0-qat", "encoder.hidden=0", "schedule.steps=2")
    run(config_for(shards, *family, "run.rotate=true"), tmp_path)
    plain, turned = load_checkpoint(tmp_path / "last.pt"), load_checkpoint(tmp_path / "rotated.pt")
    assert turned.record.name == "tiny-rotated" and turned.record.training["rotated"] is True
    singular = [np.linalg.svd(c.tensors["dim_reducer.0.weight"], compute_uv=False) for c in (plain, turned)]
    np.testing.assert_allclose(*singular, rtol=1e-4)
    with pytest.raises(BadInput, match="LayerNorm"):
        run(config_for(shards, "run.rotate=true"), tmp_path / "v2")
