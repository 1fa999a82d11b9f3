"""The config of a training: what it takes, and what it refuses by name."""

import dataclasses

import pytest
from training_sets import config_for

from model.errors import BadInput
from model.training.config import TABLES, config_of
from pipeline.training import CONFIGS, read_config, shipped

LEAST = "[data]\nshards = 's'\n[schedule]\nsteps = 5\n"


def test_what_is_not_said_has_its_default_and_names_have_hyphens_or_not():
    config = config_of(LEAST + "[encoder]\nfeed-forward = 96\nnative_dims = 64\n", "c.toml")
    assert config.encoder.feed_forward == 96 and config.encoder.native_dims == 64
    assert config.data.batch == 256 and config.run.seed == 0 and config.views.s2_length == 40


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[data", r"c.toml: Expected"),
        ("[datta]\nshards = 's'", r"c.toml: 'datta' is none of its tables \(did you mean data\?\)"),
        ("data = 3", r"'data' is none of its tables"),
        ("[schedule]\nsteps = 1", r"no table \[data\]"),
        ("[data]\nbatch = 4\n[schedule]\nsteps = 1", r"\[data\] shards is missing.*--set data.shards=\.\."),
        (LEAST + "[encoder]\nwidht = 4", r"\[encoder\] has no 'widht' \(did you mean width\?\): it has family"),
        (LEAST + "[encoder]\nwidth = 4.5", r"\[encoder\] width = 4.5: a whole number is wanted"),
        (LEAST + "[encoder]\nqk-norm = 1", r"\[encoder\] qk-norm = 1: true or false is wanted"),
        (LEAST + "[projector]\nwidths = 12", r"\[projector\] widths = 12: a list is wanted, each a whole number"),
        (LEAST + "[projector]\nwidths = [1, true]", r"\[projector\] widths = True: a whole number"),
        (LEAST + "[projector]\nwidths = []", r"\[projector\] widths = \[\]: one layer at least"),
        (LEAST + "[encoder]\nwidth = 15", r"\[encoder\] width 15 with 4 heads: it must be even"),
        (LEAST + "[encoder]\nfamily = 'v3'", r"\[encoder\] family 'v3': this release knows"),
        (LEAST + "[encoder]\nname = 'v2'", r"\[encoder\] name = 'v2': that is what published weights"),
        (LEAST + "[encoder]\nhidden = 0", r"\[encoder\] hidden = 0: the reducer of family v2 has a hidden layer"),
        (LEAST + "[encoder]\nfamily = 'v1.0-qat'", r"\[encoder\] hidden = 512: the reducer .* has none, give 0"),
        (LEAST + "[encoder]\nfamily = 'v1.1-mpc'\nqk-norm = true", r"\[encoder\] qk-norm: family v1.1-mpc has none"),
        (LEAST + "[encoder]\nfamily = 'v1.1-mpc'\npooling = 'mean'", r"\[encoder\] pooling mean: .* has a GRU"),
        (LEAST + "[encoder]\nstored-dims = 200", r"\[encoder\] stored-dims = 200: it must lie in 0..128"),
        (LEAST + "[encoder]\ndropout = 1.0", r"\[encoder\] dropout = 1.0: it must lie in 0..1, 1 left out"),
        (LEAST + "[views]\ns2-length = 0", r"\[views\] views of 0 and 40 rows"),
        (LEAST + "[views]\nshortest = 50", r"\[views\] shortest view of 50 rows"),
        (LEAST.replace("'s'", "'s'\norder = 'tile'"), r"\[data\] order = 'tile': it must be one of shuffled, stored"),
        (LEAST + "[views]\nrandom = 0", r"\[views\] random = 0: true or false is wanted"),
        (LEAST + "[loss]\nmix = 'x'", r"\[loss\] mix = 'x': it must be one of none, readme"),
        (LEAST + "[loss]\nalpha = 0.0", r"\[loss\] alpha = 0.0: it must be above 0"),
        (LEAST + "[loss]\nweight = nan", r"\[loss\] weight = nan: it must be 0 or more"),
        (LEAST + "[optimiser]\nprecision = 'fp8'", r"\[optimiser\] precision = 'fp8': it must be one of fp32, bf16"),
        (LEAST + "[optimiser]\nrate = inf", r"\[optimiser\] rate = inf: it must be above 0"),
        (LEAST + "epochs = 2", r"\[schedule\] steps = 5 and epochs = 2: give one of them"),
        (LEAST + "warmup = 0.6\nplateau = 0.6", r"\[schedule\] warmup 0.6 and plateau 0.6: shares of all steps"),
        (LEAST + "[qat]\nstart = 1.5", r"\[qat\] start = 1.5: it must lie in 0..1"),
        (LEAST + "[distil]\nprefixes = [8, 4]", r"\[distil\] prefixes = \[8, 4\]: one at least, ascending"),
        (LEAST + "[distil]\nteacher = 't'\nprefixes = [256]", r"\[distil\] prefixes = \[256\]: an embedding has 128"),
        (
            LEAST + "[distil]\nteacher = 't'\nprefixes = [16, 32]",
            r"prefixes = \[16, 32\]: .* the last prefix must be all",
        ),
        (
            LEAST + "[encoder]\nstored-dims = 48\n[distil]\nteacher = 't'",
            r"\[distil\] prefixes = .* 128 values, of which 48 are stored: .* one must be those",
        ),
        (LEAST + "[run]\nsave-every = 0", r"\[run\] save-every = 0: it must be 1 or more"),
        (LEAST + "[run]\nseed = 9223372036854775808", r"\[run\] seed = 9223372036854775808: it must fit into 64 bits"),
        (LEAST + "[run]\ndevice = 'tpu'", r"\[run\] device = 'tpu': it must be one of auto, cpu, cuda"),
    ],
)
def test_what_cannot_be_is_refused_by_table_and_name(text, said):
    with pytest.raises(BadInput, match=said):
        config_of(text, "c.toml")


def test_overrides_stand_in_place_of_what_the_file_says():
    config = config_of(LEAST, "c", ["data.batch=8", "data.shards=a/b", "projector.widths=[3, 4]", "loss.split=true"])
    assert (config.data.batch, config.data.shards, config.projector.widths) == (8, "a/b", (3, 4))
    assert config.loss.split is True
    for wrong, said in (("batch=8", "table.name=value"), ("x.y=1", "no table 'x'"), ("data.bach=1", "has no 'bach'")):
        with pytest.raises(BadInput, match=said):
            config_of(LEAST, "c", [wrong])


def test_a_digest_tells_two_trainings_apart_and_not_two_ways_to_carry_one_out():
    one = config_for("here")
    for same in ("data.shards=there", "run.save-every=99", "run.threads=2", "run.micro-batch=4", "data.check=false"):
        assert config_for("here", same).digest == one.digest
    for other in ("run.seed=4", "data.batch=15", "optimiser.rate=0.5", "views.s2-length=6", "qat.start=0.5"):
        assert config_for("here", other).digest != one.digest
    assert config_for("here", "distil.teacher=t.pt", "distil.prefixes=[8]").digest != one.digest


def test_the_quantiser_begins_at_a_share_of_the_steps_or_at_a_step():
    def first(*overrides):
        return config_for("s", *overrides).qat.first_step(200)

    assert first() is None and first("qat.start=0.0") == 0 and first("qat.start=0.8") == 160
    assert first("qat.step=7") == 7 and first("qat.step=0", "qat.start=0.5") == 0


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_config_is_whole_but_for_its_data_and_says_where_each_comes_from(name):
    config = read_config(name, ["data.shards=s", *(["distil.teacher=t.pt"] if name == "v2-student" else [])])
    assert config.data.shards == "s" and config.encoder.name not in ("own", "v2")
    text = (CONFIGS / f"{name}.toml").read_text()
    assert text.startswith(f"# {name}: ") and text.count("#") > 8
    with pytest.raises(BadInput, match=rf"config {name}: \[data\] shards is missing"):
        read_config(name)


def test_the_shipped_configs_are_those_that_are_promised():
    assert shipped() == ["demo", "paper-v1", "v1.1", "v2-student"]
    paper = read_config("paper-v1", ["data.shards=s"])
    assert paper.projector.widths[0] == 16384 and paper.views.s2_length == 40 and paper.schedule.epochs == 1


def test_a_file_goes_before_a_shipped_one_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text(LEAST)
    assert read_config("demo").schedule.steps == 5
    with pytest.raises(BadInput, match=r"config none.toml: No such file.*shipped ones are demo, paper-v1"):
        read_config("none.toml")


@pytest.mark.parametrize("table", TABLES)
def test_every_field_is_described(table):
    kind = TABLES[table]
    for field in dataclasses.fields(kind):
        assert field.name in kind.__doc__, f"[{table}] {field.name}"
