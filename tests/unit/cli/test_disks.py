"""Every stage where its output cannot be written: one line, whatever the library beneath."""

import json
from pathlib import Path

import pytest

from helpers import mounts

#: Imports what all stages need, so it is run and not imported here.
_STAGES = Path(mounts.__file__).with_name("stages_on_disks.py")
_FULL = "dd if=/dev/zero of={disk}/others bs=4k 2>&- || true"


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (f"mount -t tmpfs -o size=1m tmpfs {{disk}}; {_FULL}", "no space left on its disk"),
        ("mount -t tmpfs -o ro tmpfs {disk}", "its disk may only be read"),
    ],
    ids=["full", "read-only"],
)
def test_every_stage_says_it_in_one_line(tmp_path, mount, words):
    if why := mounts.missing():
        pytest.skip(why)
    disk = tmp_path / "disk"
    disk.mkdir()
    done = mounts.run_on(mount.format(disk=disk), _STAGES, tmp_path)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == 12
    for stage in told:
        assert stage["status"] == 2 and len(stage["lines"]) == 1, stage
        assert words in stage["lines"][0] and f"{disk}/" in stage["lines"][0], stage
