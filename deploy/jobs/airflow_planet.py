"""An Airflow DAG (2.9 or later, so Composer too): a global year, wave by wave, then a look at what came out.

The program does the work and keeps the record; Airflow only calls it, at the right time and again when it failed. Each
command skips what is done, so a retry costs a look. Needs `tessera-beam[cpu,gcp,dataflow]` of the image's release where
tasks run: in a KubernetesPodOperator with the -cpu image (replace bash_command by cmds and arguments), or in a virtual
environment on the worker. Airflow's own environment and Beam's do not go together.
"""

import datetime as dt

from airflow.decorators import dag
from airflow.operators.bash import BashOperator

JOB = "/opt/tessera/jobs/planet.toml"  # deploy/jobs/planet.toml, filled in
OUT = "gs://YOUR-BUCKET/embeddings/2024"
PROGRAM = "/opt/tessera/bin/tessera-beam"


@dag(
    schedule=None,  # a year is begun by a person: `airflow dags trigger tessera_planet`
    start_date=dt.datetime(2025, 1, 1, tzinfo=dt.UTC),
    catchup=False,
    max_active_runs=1,  # two runs over the same tiles would do blocks twice
    tags=["tessera"],
    default_args={"retries": 3, "retry_delay": dt.timedelta(minutes=30)},
)
def tessera_planet() -> None:
    check = BashOperator(task_id="check", bash_command=f"{PROGRAM} embed --config {JOB} --dry-run --json")
    # Exit code 3: finished with failures. They are listed in OUT/failures.parquet and done by the retry.
    embed = BashOperator(
        task_id="embed",
        bash_command=f"{PROGRAM} embed --config {JOB} --json",
        execution_timeout=dt.timedelta(days=30),
    )
    verify = BashOperator(task_id="verify", bash_command=f"{PROGRAM} verify {OUT} --recompute 20 --device cpu --json")
    report = BashOperator(task_id="report", bash_command=f"{PROGRAM} report {OUT}", trigger_rule="all_done")
    # Stopping: mark `embed` as failed and run `tessera-beam drain OUT`; a job on other machines outlives its program.
    check >> embed >> verify >> report


tessera_planet()
