"""The gate under mutation: every way to break a model file that we could think of is caught, and by what."""

import dataclasses
import fcntl
import functools
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mutants import MUTANTS, metadata
from mutants import files as files_of_others
from mutants.bases import BASES, RETRAINED, TRAINED, Context, mutate, resigned
from mutants.remade import REMADE
from remembered import remembered

from model import parity
from model.checkpoints import Checkpoint, Record, save_v2
from model.errors import BadInput
from model.export import export
from model.gate import gate
from model.gate_report import CHECKPOINT
from model.gate_static import NEEDED_TO_RUN
from model.modelfile import open_model
from model.weights import ATTENTION

BUILD = Path(__file__).parents[2] / "build"
FAMILIES = ("v1.0-early", "v1.0-qat", "v1.1-mpc", "v1.1-aws", "v2", "v2 with QK-norm")
LONG_SIZES = ((64, 40, 40), (2, 256, 8))  # of `parity.SIZES`
LOOKS = ((7, 24, 16), (5, 8, 40), (1, 1, 1))  # sizes over which files that are said to behave alike must

# Checks that no mutant in the list need fail, and why.
NOT_HERE = {
    "graph digest": "its mutants are the plain ones",
    "two threads": "no operator of such a file hangs on the number of threads",
    "placement": "where there is one provider, nothing can be placed elsewhere",
    "checkpoint's profile": "has a test of its own below",
}

# How `open_model` says what it found, and what the table calls it.
OPENING = {
    "graph digest": "its nodes and weights have digest",
    "records digest": "its records .* have digest",
    "signature": "(input|output) .* must be",
    "weights inside": "keeps .* in another file",
    "records complete": "has no .* in its metadata",
    "version": "this release reads",
    "profile": "profile .*: ",
}


@pytest.fixture(scope="session")
def shared(tmp_path_factory, request):
    """A folder of this run alone, and the same one in all its workers."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if hasattr(request.config, "workerinput") else own) / "mutants"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def files(shared, tmp_path_factory):
    """(key of `BASES`, seed of the weights) -> path of the sound file."""
    own = tmp_path_factory.mktemp("bases")

    @functools.cache
    def made(key, seed=TRAINED):
        base, path = BASES[key], shared / f"{list(BASES).index(key)}-{seed}.onnx"
        if not path.exists():
            write_model(own / path.name, base, base.tensors(seed), base.sizes)
            (own / path.name).replace(path)
        return path

    return made


@pytest.fixture(scope="module", autouse=True)
def every_check_and_a_quick_reference(shared):
    """Three things are other than in the gate that people run.

    Its checks of numbers are made even where a foreign operator is found first: each must be good on its own. The
    NumPy encoder, a slow and pure function that most mutants ask the same, is asked once. And the two sizes that take
    most of the time are left out: what a mutant changes is seen in the others, or the test fails.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.gate.NEEDED_TO_RUN", tuple(c for c in NEEDED_TO_RUN if c != "operators"))
        patch.setattr(parity, "SIZES", tuple(s for s in parity.SIZES if s not in LONG_SIZES))
        with remembered(shared):
            yield


def write_model(path, base, tensors, sizes):
    origin = {"kind": "import", "family": base.profile.name}
    return export(Checkpoint(tensors, sizes, {}), base.profile, base.family, origin, path, base.precision, base.target)


def write_checkpoint(path, base):
    """The checkpoint of a base's file, as it is published."""
    tensors, sizes = base.tensors(), base.sizes
    if sizes.pooling == ATTENTION:
        save_v2(path, Checkpoint(tensors, sizes, {}))
    else:
        state = {name: torch.from_numpy(t) for name, t in tensors.items()}
        heads = {"s2_num_heads": sizes.heads, "s1_num_heads": sizes.heads}
        torch.save({"model_state": state, "config": heads}, path)
    return path


def saved(path, proto):
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


def refusal(path):
    """What opening the file for work objects to, in words of the table; "" where it opens."""
    try:
        open_model(path)
    except BadInput as e:
        said = [name for name, words in OPENING.items() if re.search(words, str(e))]
        return ", ".join(said) or str(e).replace(f"{path}", "")[:80]
    return ""


def failures(path, against=None):
    """Names of the gate's checks that fail, those of the file alone and those of its checkpoint."""
    try:
        failed = [check for check in gate(path, against).checks if not check.ok]
    except BadInput:
        return [f"opening ({refusal(path) or 'refused'})"], []
    groups = (lambda group: group != CHECKPOINT), (lambda group: group == CHECKPOINT)
    return tuple([check.name for check in failed if chosen(check.group)] for chosen in groups)


def outputs(path):
    session = parity.Session(path.read_bytes())
    return [session.run(parity.inputs_of(*size)) for size in LOOKS]


class Table:
    """What caught each mutant: a page of the usual ones and one of the slow tests, each whole whichever test ends last.

    Attributes:
      rows: folder of this run alone, shared by its workers; a file of JSON lines for each page.
      pages: folder of the pages.
    """

    def __init__(self, rows, pages):
        self.rows, self.pages = rows, pages

    def note(self, mutant, plain, signed):
        name = "mutants" if mutant.usual else "mutants-slow"
        row = {"name": mutant.name, "base": mutant.base, "stands_for": mutant.stands_for, "plain": plain}
        with (self.rows / f"{name}.jsonl").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps({**row, "signed": signed}) + "\n")
            file.seek(0)
            text = page([json.loads(line) for line in file], mutant.usual)
            self.pages.mkdir(exist_ok=True)
            (self.pages / f"{name}.md").write_text(text)


def page(rows, usual):
    """The rows as a page, in the order of the registry."""
    order = {(m.name, m.base): i for i, m in enumerate([*MUTANTS, *REMADE])}
    count = sum(m.usual == usual for m in [*MUTANTS, *REMADE])
    head = ("mutant", "file", "what it stands for", "opening it finds", "signed again, the gate finds")
    lines = [
        "# Mutants of model files, and what caught each",
        "",
        f"{len(rows)} of the {count} mutants {'of every run' if usual else 'of the slow tests'} were tried. Signed "
        "again: every digest was made good. Where opening finds nothing, the file was exported from other weights.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for row in sorted(rows, key=lambda row: order[row["name"], row["base"]]):
        row = {**row, "name": row["name"].replace("_s_", "'s ").replace("_", " "), "plain": row["plain"] or "-"}
        lines.append("| {name} | {base} | {stands_for} | {plain} | {signed} |".format(**row))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def table(shared):
    return Table(shared, BUILD)


def each_of(mutants):
    """A test for each; those that are not usual are slow tests."""
    return [
        pytest.param(m, id=f"{m.name}-{m.base.replace(' ', '-')}", marks=[] if m.usual else [pytest.mark.slow])
        for m in mutants
    ]


def test_there_are_enough_mutants_of_every_family_and_each_says_what_it_stands_for():
    functions = {m.name: m.stands_for for m in MUTANTS}
    assert len(functions) >= 120
    assert len({(m.name, m.base) for m in MUTANTS}) == len(MUTANTS)
    assert all(re.fullmatch(r"\S.*\.", text) for text in functions.values())
    tried = {(BASES[m.base].case, BASES[m.base].precision, BASES[m.base].target) for m in MUTANTS}
    assert {case for case, *_ in tried} == set(FAMILIES)
    assert {precision for _, precision, _ in tried} == {"fp32", "fp16", "int8"}
    for case in FAMILIES:
        assert len({m.name for m in MUTANTS if BASES[m.base].case == case}) >= 10, case


@pytest.mark.parametrize("key", BASES)
def test_the_files_that_mutants_are_made_from_pass_and_each_check_is_known_to_fail_for_some_mutant(
    files, key, tmp_path
):
    report = gate(files(key), against=write_checkpoint(tmp_path / "c.pt", BASES[key]))
    assert [check for check in report.checks if not check.ok] == []
    known = frozenset().union(*(m.by for m in [*MUTANTS, *REMADE] if m.usual))
    assert {check.name for check in report.checks} - known == NOT_HERE.keys()


@pytest.mark.parametrize("key", BASES)
def test_signing_a_sound_file_again_changes_nothing(files, key):
    proto = onnx.load(files(key))
    signed = resigned(proto, proto, BASES[key].sizes)
    assert signed.SerializeToString(deterministic=True) == files(key).read_bytes()


@pytest.mark.parametrize("change", [files_of_others.a_node_renamed, metadata.notes_edited])
def test_the_gate_too_says_that_a_file_was_edited(files, change, tmp_path):
    proto = onnx.load(files("v2"))
    change(proto, Context(BASES["v2"], None))
    assert "graph digest" in failures(saved(tmp_path / "m.onnx", proto))[0]


@pytest.mark.parametrize("mutant", each_of(MUTANTS))
def test_every_mutant_is_caught_and_once_it_is_signed_again_by_more_than_a_digest(mutant, files, table, tmp_path):
    base, sound = BASES[mutant.base], files(mutant.base)
    proto = onnx.load(sound)
    changed = mutate(proto, mutant, Context(base, lambda: onnx.load(files(mutant.base, RETRAINED))))
    assert changed.SerializeToString(deterministic=True) != sound.read_bytes(), "this mutator does nothing"
    plain = refusal(saved(tmp_path / "plain.onnx", changed))
    signed = saved(tmp_path / "signed.onnx", resigned(changed, proto, base.sizes))
    found, against = failures(signed, write_checkpoint(tmp_path / "c.pt", base) if mutant.unseen else None)
    told = ", ".join(found)
    if mutant.unseen:
        told = f"with the checkpoint: {', '.join(against)}"
    elif mutant.alike:
        told = told or "nothing: it behaves alike"
    table.note(mutant, plain, told or "NOTHING")

    assert plain, "edited by hand, and it opens"
    assert not [name for name in found if "digest" in name], "the test has not signed it well"
    assert mutant.by <= set(found)
    if mutant.alike:
        for got, was in zip(outputs(signed), outputs(sound), strict=True):
            np.testing.assert_array_equal(got.codes, was.codes)
            np.testing.assert_allclose(got.scale, was.scale, rtol=1e-6)
    elif mutant.unseen:
        assert against, "made from other weights, and the checkpoint does not tell"
    else:
        assert set(found) - {"nodes"}, "edited and signed again, and it passes, or would pass if the exporter did it"


@pytest.mark.parametrize("mutant", each_of(REMADE))
def test_what_was_exported_from_other_weights_passes_alone_and_fails_against_the_checkpoint(
    mutant, files, table, tmp_path
):
    base = BASES[mutant.base]
    path = tmp_path / "remade.onnx"
    write_model(path, base, *mutant.change({n: a.copy() for n, a in base.tensors().items()}, base))
    if mutant.old_digest:
        proto, before = onnx.load(path), onnx.load(files(mutant.base))
        told = {p.key: p.value for p in before.metadata_props}
        for record in proto.metadata_props:
            if record.key in ("weights_sha256", "name"):
                record.value = told[record.key]
        saved(path, resigned(proto, proto, base.sizes))
    alone, against = failures(path, write_checkpoint(tmp_path / "c.pt", base))
    table.note(mutant, "", f"with the checkpoint: {', '.join(against) or 'NOTHING'}")
    assert open_model(path).encoder == mutant.change(dict(base.tensors()), base)[1]
    assert alone == []
    assert mutant.by <= set(against)


def test_a_file_under_another_profile_than_that_of_its_training_fails_against_the_checkpoint(files, tmp_path):
    base = BASES["v2"]
    trained = dataclasses.replace(base.profile, name="own", s2_mean=tuple(m + 1 for m in base.profile.s2_mean))
    record = Record("own", trained, {})
    save_v2(tmp_path / "c.pt", Checkpoint(base.tensors(), base.sizes, {}, record=record))
    alone, against = failures(files("v2"), tmp_path / "c.pt")
    assert alone == []
    assert {"checkpoint's profile", "parity with PyTorch"} <= set(against)


def test_the_table_has_the_rows_of_all_workers_of_one_run_in_the_registry_s_order(tmp_path):
    first, second = [m for m in MUTANTS if m.usual][:2]
    one, two = Table(tmp_path, tmp_path / "build"), Table(tmp_path, tmp_path / "build")
    two.note(second, "graph digest", "golden outputs")
    one.note(first, "graph digest", "golden outputs")
    lines = (tmp_path / "build" / "mutants.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines[6:]] == [first.base, second.base]
    assert lines[2].startswith("2 of the ")
