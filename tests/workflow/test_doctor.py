"""`mlcd doctor` on the real workflow of this checkout."""

from __future__ import annotations

import pytest

from helpers.doctor import doctor, row
from mlcd.commands.doctor.checks import FAIL


@pytest.mark.workflow
def test_a_sound_machine_passes():
    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert row(done.stdout, "config") == "ok config config.yaml: 2,380 rows in 4 chunks"
    assert row(done.stdout, "memory").startswith("ok memory")
    assert FAIL not in done.stdout
