"""A real training on CPUs whose code changes between two checkpoints."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from helpers.train_runs import VIT
from helpers.train_stores import file_options, stores
from mlcd.launch import resume

TESTS = Path(__file__).parents[2]
SECTION = {**VIT, "epochs": 12}


def command(root, *words):
    """Start `mlcd` with the package whose folder is `root`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root.parent), str(TESTS)])}
    return subprocess.Popen(
        [sys.executable, "-m", "mlcd", *words], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def ended(process, code=0):
    said, _ = process.communicate(timeout=200)
    assert process.returncode == code, said
    return said


def test_a_training_resumes_after_its_change_of_code_was_accepted(tmp_path, package_copy):
    paths, output = stores(tmp_path / "stores"), tmp_path / "train"
    options = [f"--{key.replace('_', '-')}={value}" for key, value in SECTION.items()]
    train = ("train", *file_options(paths, output), *options, "--launcher", "inline",
             "--ranks-per-node", "1", "--checkpoint-every", "2", "--workers", "0",
             "--threads", "1")  # fmt: skip
    first = command(package_copy, *train)
    end = time.monotonic() + 200
    while not list(output.glob("state/*/checkpoints/step_*")):
        assert first.poll() is None and time.monotonic() < end, first.communicate()
        time.sleep(0.02)
    first.kill()
    first.communicate()

    path = package_copy / "training" / "lr_schedule.py"
    text = path.read_text()
    assert text.count("math.pi") == 1
    path.write_text(text.replace("math.pi", "3.14159"))
    said = ended(command(package_copy, *train), 2)
    assert "was saved by other code (training.lr_schedule)" in said
    assert f"mlcd accept {output}" in said

    said = ended(command(package_copy, "accept", str(output), "--reason", "pi to five places"))
    assert said.startswith("training.lr_schedule: ")
    said = ended(command(package_copy, *train))
    (entry,) = json.loads((output / "encoder.json").read_text())["accepted_code"]
    assert entry["step"] >= 2 and entry["reason"] == "pi to five places"
    assert f"from step {entry['step']} of 60" in said
    assert list(entry["modules"]) == ["training.lr_schedule"]
    assert json.loads((output / resume.ACCEPTED).read_text()) == entry
