"""Every job file under deploy/: it can be started by one command, and says what it would start without a network."""

import ast
import shlex
import shutil
import socket
import sys
import tomllib
import types

import click
import jobs
import pytest
import typer

from pipeline.cli import app, run


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = shutil.which  # a dry run starts no java, but asks whether there is one
    monkeypatch.setattr("shutil.which", lambda name, **more: found(name, **more) or {"java": "/java"}.get(name))
    with jobs.loopback_alone(monkeypatch):
        yield


def test_a_socket_to_elsewhere_would_be_noticed():
    with pytest.raises(AssertionError, match="169"):
        socket.create_connection(("169.254.169.254", 80), timeout=1)


@pytest.mark.parametrize("file", jobs.FILES, ids=jobs.named)
def test_each_job_is_dry_run_without_network_or_credentials(file, world, tmp_path, capsys):
    found = jobs.dry(jobs.filled(file, world, tmp_path), capsys)
    said = tomllib.loads(file.read_text())
    assert found["tiles"] >= 1 and found["plan"]["provider"] == "CUDAExecutionProvider"
    assert found["plan"]["force"] is said["job"].get("force", False)
    (environment,) = found["job"]["environments"]
    assert environment["hints"] == {}
    assert [len([s for s in stage if s.endswith("/EmbedBlock")]) for stage in found["job"]["stages"]].count(1) == 1
    assert found["job"]["request_bytes"] < 200_000  # tiles are read from the inventory: a planet's job is as small
    assert found["memory_per_worker_bytes"] <= said["job"]["memory"] * 2**30 * 1.1


@pytest.mark.parametrize("file", [f for f in jobs.FILES if "flink" not in jobs.named(f)], ids=jobs.named)
def test_a_job_as_it_stands_is_refused_by_the_name_of_what_is_not_filled_in(file, world, tmp_path, capsys):
    jobs.beside(world, tmp_path)
    more = ["--tiles", world.earth.tiles[0]] if file.name == "tile.toml" else []
    assert run(["embed", "--config", str(file), "--dry-run", *more]) == 2
    assert "YOUR-PROJECT" in capsys.readouterr().err


@pytest.mark.parametrize("file", jobs.FILES, ids=jobs.named)
def test_each_job_says_how_it_is_started_and_what_it_is_on_the_bill(file):
    text = file.read_text()
    assert f"--config deploy/{jobs.named(file)}" in text or "submit.sh" in text
    if (engine := tomllib.loads(text)["engine"])["runner"] == "dataflow":
        assert {label.partition("=")[0] for label in engine["labels"]} >= {"product", "year"}


def test_readmes_name_every_job_file():
    for folder in ("dataflow", "flink", "jobs"):
        readme = (jobs.ROOT / "deploy" / folder / "README.md").read_text()
        for file in (jobs.ROOT / "deploy" / folder).iterdir():
            if file.suffix in (".toml", ".py", ".yaml", ".sh") and file.name != "template_main.py":
                assert file.name in readme, f"{folder}: {file.name}"


def test_catch_up_takes_the_tiles_of_a_list_and_one_tile_its_own(world, tmp_path, capsys):
    for name in ("stale.toml", "tile.toml"):
        found = jobs.dry(jobs.filled(jobs.ROOT / "deploy/jobs" / name, world, tmp_path), capsys)
        assert found["tiles"] == 1 < len(world.earth.tiles)


def test_a_country_makes_no_block_outside_its_polygons(world, tmp_path, capsys):
    whole = jobs.dry(jobs.filled(jobs.ROOT / "deploy/jobs/planet.toml", world, tmp_path), capsys)
    part = jobs.dry(jobs.filled(jobs.ROOT / "deploy/jobs/country.toml", world, tmp_path), capsys)
    assert 0 < part["blocks"] < whole["blocks"]
    assert part["plan"]["region"]


# Airflow: an environment of its own, which this one is not. What the DAG hands to it is looked at, not Airflow.


def dag_of(monkeypatch):
    """Operators of the example by task id, in the order that they are made, with what Airflow would be told."""
    made = {}

    class Operator:
        def __init__(self, task_id, bash_command, **more):
            self.bash_command, self.more, self.next = bash_command, more, None
            made[task_id] = self

        def __rshift__(self, other):
            self.next = other
            return other

    def dag(**told):
        def decorated(function):
            def build():
                function()
                return told

            return build

        return decorated

    modules = {"airflow": {}, "airflow.decorators": {"dag": dag}, "airflow.operators": {}}
    modules["airflow.operators.bash"] = {"BashOperator": Operator}
    for name, values in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    source = (jobs.ROOT / "deploy/jobs/airflow_planet.py").read_text()
    exec(compile(source, "airflow_planet.py", "exec"), {"__name__": "airflow_planet"})
    return made


def test_the_dag_calls_the_program_with_options_that_it_has(monkeypatch):
    tasks = dag_of(monkeypatch)
    assert list(tasks) == ["check", "embed", "verify", "report"]
    assert tasks["check"].next is tasks["embed"] and tasks["verify"].next is tasks["report"]
    for task in tasks.values():
        program, verb, *rest = shlex.split(task.bash_command)
        assert program.endswith("/tessera-beam")
        command = typer.main.get_command(app).commands[verb]
        command.parse_args(click.Context(command), rest)
    assert "--dry-run" in tasks["check"].bash_command
    assert tasks["check"].bash_command.replace(" --dry-run", "") == tasks["embed"].bash_command


def test_the_dag_imports_nothing_but_airflow():
    tree = ast.parse((jobs.ROOT / "deploy/jobs/airflow_planet.py").read_text())
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert {n.partition(".")[0] for n in names} == {"airflow", "datetime"}
