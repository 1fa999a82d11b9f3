"""The gate under mutation: every way to break a model file that we could think of is caught, and by what."""

import fcntl
import functools
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mutants import MUTANTS
from mutants.bases import BASES, RETRAINED, TRAINED, Context, mutate, resigned
from mutants.remade import REMADE

from model import parity
from model.checkpoints import Checkpoint, save_v2
from model.errors import BadInput
from model.export import export
from model.gate import gate
from model.modelfile import open_model
from model.weights import ATTENTION

BUILD = Path(__file__).parents[2] / "build"
FAMILIES = ("v1.0-early", "v1.0-qat", "v1.1-mpc", "v1.1-aws", "v2", "v2 with QK-norm")
LOOKS = ((7, 24, 16), (5, 8, 40), (1, 1, 1))  # sizes over which files that are said to behave alike must

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
def files(tmp_path_factory):
    """(key of `BASES`, seed of the weights) -> path of the sound file."""
    folder = tmp_path_factory.mktemp("bases")

    @functools.cache
    def made(key, seed=TRAINED):
        base, path = BASES[key], folder / f"{list(BASES).index(key)}-{seed}.onnx"
        write_model(path, base, base.tensors(seed), base.sizes)
        return path

    return made


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


def failures(path, **options):
    """Names of the gate's checks that fail; where it cannot even read the file, why."""
    try:
        return [check.name for check in gate(path, **options).checks if not check.ok]
    except BadInput:
        return [f"opening ({refusal(path) or 'refused'})"]


def outputs(path):
    session = parity.Session(path.read_bytes())
    return [session.run(parity.inputs_of(*size)) for size in LOOKS]


class Table:
    """What caught each mutant, written as the tests end; the workers of one run share it.

    Rows of another run are dropped. Every row rewrites the page, so that it is whole whichever test ends last.
    """

    def __init__(self, folder, run):
        self.folder, self.run = folder, run

    def note(self, **row):
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "mutants.jsonl").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            lines = file.read().splitlines()
            if not lines or json.loads(lines[0])["run"] != self.run:
                lines = []
                file.truncate(0)
            lines.append(json.dumps({"run": self.run, **row}))
            file.write(lines[-1] + "\n")
            file.flush()
            (self.folder / "mutants.md").write_text(page([json.loads(line) for line in lines]))


def page(rows):
    """The rows as a page, in the order of the registry."""
    order = {(m.name, m.base): i for i, m in enumerate([*MUTANTS, *REMADE])}
    rows = sorted(rows, key=lambda row: order[row["mutant"], row["base"]])
    head = ("mutant", "file", "what it stands for", "opening it finds", "re-signed, the gate finds")
    lines = [
        "# Mutants of model files, and what caught each",
        "",
        f"{len(rows)} of {len(order)} mutants were tried in this run. Re-signed: every digest was made good again.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *(
            "| {} | {} | {} | {} | {} |".format(
                row["mutant"].replace("_", " "), row["base"], row["stands_for"], row["plain"] or "-", row["signed"]
            )
            for row in rows
        ),
    ]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def table(testrun_uid):
    return Table(BUILD, testrun_uid)


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
def test_the_files_that_mutants_are_made_from_pass_and_signing_them_again_changes_nothing(files, key):
    report = gate(files(key))
    assert [check for check in report.checks if not check.ok] == []
    proto = onnx.load(files(key))
    signed = resigned(proto, proto, BASES[key].sizes)
    assert signed.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.name}-{m.base.replace(' ', '-')}")
def test_every_mutant_is_caught_and_once_it_is_signed_again_by_more_than_a_digest(mutant, files, table, tmp_path):
    base, sound = BASES[mutant.base], files(mutant.base)
    proto = onnx.load(sound)
    changed = mutate(proto, mutant, Context(base, lambda: onnx.load(files(mutant.base, RETRAINED))))
    assert changed.SerializeToString(deterministic=True) != sound.read_bytes(), "this mutator does nothing"
    plain = refusal(saved(tmp_path / "plain.onnx", changed))
    signed = saved(tmp_path / "signed.onnx", resigned(changed, proto, base.sizes))
    found = failures(signed)
    told = ", ".join(found)
    if mutant.unseen:
        against = failures(signed, against=write_checkpoint(tmp_path / "c.pt", base))
        told = f"with the checkpoint: {', '.join(against)}"
    elif mutant.alike:
        told = told or "nothing: it behaves alike"
    table.note(
        mutant=mutant.name, base=mutant.base, stands_for=mutant.stands_for, plain=plain, signed=told or "NOTHING"
    )

    assert plain, "edited by hand, and it opens"
    assert not [name for name in found if "digest" in name], "the test has not signed it well"
    if mutant.alike:
        for got, was in zip(outputs(signed), outputs(sound), strict=True):
            np.testing.assert_array_equal(got.codes, was.codes)
            np.testing.assert_allclose(got.scale, was.scale, rtol=1e-6)
    elif mutant.unseen:
        assert against, "made from other weights, and the checkpoint does not tell"
    else:
        assert found, "edited and signed again, and it passes"


@pytest.mark.parametrize("mutant", REMADE, ids=lambda m: f"{m.name}-{m.base.replace(' ', '-')}")
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
    alone = failures(path)
    against = failures(path, against=write_checkpoint(tmp_path / "c.pt", base))
    told = f"with the checkpoint: {', '.join(against) or 'NOTHING'}"
    table.note(mutant=mutant.name, base=mutant.base, stands_for=mutant.stands_for, plain="", signed=told)
    assert open_model(path).encoder == mutant.change(dict(base.tensors()), base)[1]
    assert alone == []
    assert against


@pytest.mark.parametrize("key", BASES)
def test_against_their_own_checkpoint_the_files_pass(files, key, tmp_path):
    assert failures(files(key), against=write_checkpoint(tmp_path / "c.pt", BASES[key])) == []


def test_the_table_has_the_rows_of_all_workers_of_one_run_in_the_registry_s_order(tmp_path):
    first, second = MUTANTS[0], MUTANTS[1]

    def row(mutant):
        return {"mutant": mutant.name, "base": mutant.base, "stands_for": "x.", "plain": "", "signed": "golden outputs"}

    Table(tmp_path, "yesterday").note(**row(second))
    one, two = Table(tmp_path, "today"), Table(tmp_path, "today")
    two.note(**row(second))
    one.note(**row(first))
    lines = (tmp_path / "mutants.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines[6:]] == [first.base, second.base]
    assert f"2 of {len(MUTANTS) + len(REMADE)} mutants" in lines[2]
