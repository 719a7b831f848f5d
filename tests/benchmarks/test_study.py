"""What studies share: what is started ends with them, wherever they were started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from helpers.benchmark_scripts import study
from helpers.grounds import noise_grounds
from helpers.paths import ROOT
from mlcd.utils.errors import UserError

CODE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell has what it starts in its background
import study

def main():
    with study.ended_with_us([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        print(child.pid, flush=True)
        time.sleep(60)

study.program("some study", main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_a_study_runs_ends_with_it_also_in_a_shells_background(number):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT / 'src'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        # It has to begin before it can ignore anything.
        time.sleep(1)
        process.send_signal(number)
        assert process.wait(30) == 130
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def test_scenes_that_are_there_must_be_those_of_the_study(tmp_path):
    """Rows of a new setting from the images of the old one would be wrong and look right."""
    grounds = noise_grounds(tmp_path / "grounds", 4)
    words = ["--objects", 1, "--train=4", "--test=2", "--contrast=0.1"]
    data = tmp_path / "data"
    study.compose(data, 0, grounds, words)
    before = (data / "manifest.json").read_bytes()
    study.compose(data, 0, grounds, words)
    study.compose(data, 0, None, words)
    others = noise_grounds(tmp_path / "others", 5)
    for seed, photos, changed in ((1, grounds, words), (0, None, [*words[:-1], "--contrast=0.2"]),
                                  (0, others, words)):  # fmt: skip
        with pytest.raises(UserError, match="data: no scenes of this study"):
            study.compose(data, seed, photos, changed)
    assert (data / "manifest.json").read_bytes() == before
