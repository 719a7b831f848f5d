"""The acceptance itself: a line per step, and a step that hangs or dies costs no other."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpu import acceptance, compute
from gpu.measuring import Outcome


def test_each_step_prints_a_line_of_json_and_writes_it(tmp_path: Path, capsys, monkeypatch) -> None:
    # In this process, whose imports are done; CI runs the program whole.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(sys, "path", sys.path.copy())
    output = tmp_path / "found.jsonl"
    steps = "ceilings,classifier_exact,probe"
    asked = argparse.Namespace(tiny=True, only=steps, output=output, limit=100.0)
    assert acceptance.run(asked) == 0
    assert capsys.readouterr().out == output.read_text()
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["step"] for line in lines] == steps.split(",")
    assert all(line["verdict"] == "met" and line["goal"] for line in lines)


@pytest.mark.parametrize(
    ("how", "why"),
    [("hang", "took more than 5 s"), ("die", "ended with -9"), ("raise", "ValueError: no"),
     ("miss", None)],
)  # fmt: skip
def test_a_bad_step_is_told_and_ended(monkeypatch, how: str, why: str | None) -> None:
    def bad(setting: object) -> Outcome:
        if how == "hang":
            subprocess.Popen(["sleep", "61.25"])
            time.sleep(60)
        if how == "die":
            os.kill(os.getpid(), 9)
        if how == "raise":
            raise ValueError("no")
        return Outcome(False, {"figure": 1})

    monkeypatch.setattr(compute, "linear_probe", bad)
    found = acceptance.one("probe", 5, argparse.Namespace(tiny=True), {})
    if why is None:
        assert (found["verdict"], found["figure"]) == ("missed", 1)
    else:
        assert found["verdict"] == "failed" and why in found["why"]
    # What it started is gone too.
    told = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "sleep 61.25" not in told


def test_goals_fit_into_ten_minutes_and_name_what_is_there() -> None:
    assert sum(step.limit for step in acceptance.STEPS.values()) <= 660
    assert acceptance.LIMIT < 600
    for step in acceptance.STEPS.values():
        module, function = step.function.split(".")
        assert callable(getattr(__import__(f"gpu.{module}", fromlist=["x"]), function))
