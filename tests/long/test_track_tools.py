"""`mlcd track` with each tool's own library, read back by that library: MLflow, wandb, Trackio.

Libraries that are not installed here come into an environment of their own, which sees this one's.

make test-long TESTS=tests/long/test_track_tools.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from helpers.tracked import Results, record, wandb_steps
from mlcd.utils.files import write_json

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

#: Tool → a program that prints [[step, loss], …] of its only training, asked of its own library.
READ = {
    "mlflow": """
from mlflow import MlflowClient
client = MlflowClient("sqlite:///FOLDER/mlflow.db")
(number,) = [one.experiment_id for one in client.search_experiments() if one.name == "project"]
(run,) = client.search_runs([number])
assert run.data.params["lr"] == "0.5" and run.info.status == "STATUS", run
found = client.get_metric_history(run.info.run_id, "train/loss")
print(json.dumps([[metric.step, metric.value] for metric in found]))
""",
    "trackio": """
import os
os.environ["TRACKIO_DIR"] = "FOLDER"
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
(run,) = Api().runs("project")
assert run.config["lr"] == 0.5, run.config
lines = SQLiteStorage.get_logs("project", run.name)
print(json.dumps([[line["step"], line["train/loss"]] for line in lines if "train/loss" in line]))
""",
}


def environment(tool: str, folder: Path) -> dict[str, str]:
    """Return the variables of a process that can import `tool` and what this one can."""
    path = [entry for entry in sys.path if entry]
    if importlib.util.find_spec(tool) is None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        python = str(folder / "bin" / "python")
        command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", tool]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{tool} cannot be installed here: {done.stderr.strip()[-200:]}")
        names = {"base": str(folder), "platbase": str(folder)}
        # Behind this environment's: what both have is ours.
        path.append(sysconfig.get_path("purelib", vars=names))
    offline = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    unset = ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return {**kept, **offline, "PYTHONPATH": os.pathsep.join(path)}


def track(results: Results, tool: str, variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "mlcd", "track", str(results.path), "--to", tool, "--once"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode in (0, 4) and "Traceback" not in done.stderr, done.stderr[-3000:]


def losses(results: Results, tool: str, variables: dict[str, str], status: str) -> Any:
    folder = str(results.path.parent / "track" / tool)
    program = "import json" + READ[tool].replace("FOLDER", folder).replace("STATUS", status)
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("tool", READ)
def test_each_step_is_there_once_after_a_resume_and_a_kill(tool, tmp_path):
    variables = environment(tool, tmp_path / "environment")
    results = Results(tmp_path / "project")
    results.log(*range(5, 21, 5))
    results.score(10)
    track(results, tool, variables)
    cursor = next((results.path.parent / "track" / tool / "shipped").glob("*.json"))
    before = cursor.read_text()
    results.resume(10)
    results.log(15, 20, 25)
    track(results, tool, variables)
    assert [step for step, _ in losses(results, tool, variables, "RUNNING")] == [5, 10, 15, 20, 25]
    # Killed before it was noted what is there.
    cursor.write_text(before)
    results.log(30)
    results.finish(30)
    track(results, tool, variables)
    expected = [[step, record(step)["loss"]] for step in range(5, 31, 5)]
    assert losses(results, tool, variables, "FINISHED") == expected


def test_wandb_offline_ships_again_what_a_killed_start_had_not_closed(tmp_path):
    variables = environment("wandb", tmp_path / "environment")
    results = Results(tmp_path / "project")
    results.log(*range(5, 21, 5))
    folder = results.path.parent / "track" / "wandb"
    track(results, "wandb", variables)
    (first,) = folder.glob("wandb/offline-run-*")
    assert wandb_steps(first) == [5, 10, 15, 20]
    cursor = next(folder.glob("shipped/*.json"))
    before = json.loads(cursor.read_text())
    assert before["memory"] == {}
    results.log(25)
    track(results, "wandb", variables)
    (second,) = set(folder.glob("wandb/offline-run-*")) - {first}
    assert wandb_steps(second) == [25]
    # As a kill leaves it: the folder is open, nothing is noted.
    write_json(cursor, {**before, "memory": {"open": second.name}})
    results.log(30)
    track(results, "wandb", variables)
    assert not second.exists() and first.exists()
    (third,) = set(folder.glob("wandb/offline-run-*")) - {first}
    assert wandb_steps(third) == [25, 30]
    # A score of a lower step than those that are there comes, once.
    results.score(20)
    track(results, "wandb", variables)
    results.score_late(10)
    track(results, "wandb", variables)
    track(results, "wandb", variables)
    runs = sorted(folder.glob("wandb/offline-run-*"))
    assert sorted(step for run in runs for step in wandb_steps(run, "live", "few/knn_5")) == [
        10,
        20,
    ]
