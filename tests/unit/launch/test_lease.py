"""Leases: one writer at a time, through SIGKILL, waiting, and machines that cannot be asked."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlcd.launch import lease
from mlcd.launch.lease import Lease, writing
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_text
from mlcd.utils.processes import process_alive, start_of, this_process

WRITER = """
import sys, time
from pathlib import Path
from mlcd.launch.lease import writing
from mlcd.utils.logging import setup_logging
setup_logging(None, "writer")
output, seconds, identity = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
with writing(output, identity) as wanted:
    if wanted:
        print("holds", flush=True)
        time.sleep(seconds)
        output.write_text(identity)
print("wrote" if wanted else "taken", flush=True)
"""


def writer(output: Path, seconds: float, identity: str = "same") -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(output), str(seconds), identity], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def waits(output: Path) -> None:
    end = time.monotonic() + 60
    while not list(output.parent.glob("state/*.lease/*.waiting")):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.h5"


def clean(output: Path) -> bool:
    return not list(output.parent.glob("state/*"))


def test_who_waited_takes_the_result_of_the_same_work(output):
    first = writer(output, 6)
    assert first.stdout.readline() == "holds\n"
    second = writer(output, 0)
    waits(output)
    told = second.communicate()
    assert told[0] == "taken\n"
    assert f"process {first.pid}" in told[1]
    assert first.communicate()[0] == "wrote\n"
    assert clean(output)


@pytest.mark.parametrize("difference", ["identity", "removed"])
def test_who_waited_works_if_the_result_is_another_or_gone(output, difference):
    first = writer(output, 5)
    first.stdout.readline()
    second = writer(output, 0, "other" if difference == "identity" else "same")
    waits(output)
    if difference == "removed":
        # As Snakemake does before an attempt, at the worst moment.
        while not output.exists():
            time.sleep(0.001)
        output.unlink()
    assert second.communicate()[0] == "holds\nwrote\n"
    assert output.read_text() == ("other" if difference == "identity" else "same")
    assert first.communicate()[0] == "wrote\n"
    assert clean(output)


def test_a_killed_holder_is_followed_at_once(output):
    first = writer(output, 60)
    first.stdout.readline()
    second = writer(output, 0)
    waits(output)
    first.kill()
    first.wait()
    assert second.communicate(timeout=30)[0] == "holds\nwrote\n"
    assert clean(output)


def test_a_failed_holder_leaves_the_work_to_the_next(output):
    with pytest.raises(ValueError), writing(output, 1):
        raise ValueError
    with writing(output, 1) as wanted:
        assert wanted
    assert clean(output)


@pytest.mark.long
def test_of_many_only_one_holds(tmp_path):
    """Many threads' leases over a dead holder: their spans never overlap."""
    folder = tmp_path / "lease"
    folder.mkdir()
    (folder / "000007.json").write_text(json.dumps({**this_process(), "created": 1.0}))
    spans, lock = [], threading.Lock()

    def work() -> None:
        mine = Lease(folder, "x", [tmp_path / "none"])
        while mine.attempt() is not None:
            time.sleep(0.01)
        begin = time.monotonic()
        time.sleep(0.02)
        with lock:
            spans.append((begin, time.monotonic()))
        mine.release()

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans.sort()
    assert len(spans) == 12
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert not folder.exists()


def elsewhere(folder: Path, **changes) -> Path:
    """Plant the lease of a holder on another machine."""
    folder.mkdir(parents=True)
    path = folder / "000001.json"
    path.write_text(json.dumps({**this_process(), "machine": "another", "job": None, **changes}))
    return path


def test_on_another_machine_silence_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_DOUBT", 0.5)
    monkeypatch.setattr(lease, "LEASE", 1.5)
    path = elsewhere(tmp_path / "lease")
    mine = Lease(tmp_path / "lease", "x", [tmp_path / "none"])
    end = time.monotonic() + 3
    while time.monotonic() < end:
        # Its clock is years away: that its time changes is what counts.
        os.utime(path, ns=(0, int(time.monotonic() * 1e9)))
        assert mine.attempt() is not None
        time.sleep(0.1)
    start = time.monotonic()
    while mine.attempt() is not None:
        time.sleep(0.05)
    assert 1.3 < time.monotonic() - start < 10
    mine.release()


def test_from_outside_a_holder_is_seen_until_it_is_gone(tmp_path):
    folder = tmp_path / "x.lease"
    assert lease.live_holder(folder) is None
    held = Lease(folder, "x", [tmp_path / "x"])
    assert held.attempt() is None
    found = lease.live_holder(folder)
    assert found is not None and found["pid"] == os.getpid()
    held.release()
    assert lease.live_holder(folder) is None
    folder.mkdir()
    path = folder / "000001.json"
    for text in ("", "[]", json.dumps({"finished": "x"}), json.dumps({"pid": os.getpid()})):
        path.write_text(text)
        assert lease.live_holder(folder) is None
    # Here its process is looked for; elsewhere its silence decides.
    path.write_text(json.dumps({**this_process(), "created": 1}))
    assert lease.live_holder(folder) is None
    path.write_text(json.dumps({**this_process(), "machine": "other", "job": None}))
    for silence, lives in ((lease.LEASE - 20, True), (lease.LEASE + 20, False)):
        os.utime(path, (time.time() - silence,) * 2)
        assert (lease.live_holder(folder) is not None) == lives


def test_a_number_that_is_anothers_by_now_is_left_alone(tmp_path):
    folder, none = tmp_path / "lease", [tmp_path / "none"]
    first, second, third = (Lease(folder, "x", none) for _ in range(3))
    assert first.attempt() is None
    (path,) = folder.glob("*.json")
    dead = {path: {**json.loads(path.read_text()), "pid": 0}}
    # The second looked when a dead one held this number, which is the first's by now.
    assert not second._create(dead)
    assert list(folder.glob("*.json")) == [path]
    # The first is given up, and the third holds the same number.
    path.unlink()
    assert third.attempt() is None
    first.release()
    assert list(folder.glob("*.json")) == [path]
    assert second.attempt()["token"] == third._token
    third.release()
    assert not folder.exists()


@pytest.mark.parametrize("change", ["removed", "another's"])
def test_who_lost_its_lease_ends_itself(output, change):
    code = WRITER.replace(
        "from mlcd.launch.lease",
        "from mlcd.launch import lease; lease.BEAT = 0.2\nfrom mlcd.launch.lease",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(output), "60", "same"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    process.stdout.readline()
    (path,) = output.parent.glob("state/*.lease/*.json")
    if change == "removed":
        path.rename(path.with_name("000009.json"))
    else:
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(this_process()))
        temporary.replace(path)
    assert process.wait(30) == 1
    assert not output.exists()


def test_a_process_is_known_by_its_start_not_by_the_clock(tmp_path):
    # Its name looks like fields of /proc.
    program = tmp_path / "a) S 1 (b"
    shutil.copy(shutil.which("sleep"), program)
    process = subprocess.Popen([str(program), "60"])
    start = start_of(process.pid)
    ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    assert abs(ticks - start) < 60 * os.sysconf("SC_CLK_TCK")
    assert process_alive(process.pid, start)
    assert not process_alive(process.pid, start - 1)
    process.kill()
    while process_alive(process.pid, start):  # a zombie in the end
        time.sleep(0.01)
    process.wait()
    assert start_of(process.pid) is None
    assert not process_alive(process.pid, None)


def test_who_lost_its_lease_publishes_nothing(output, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 600.0)
    write_text(output, "theirs")
    with pytest.raises(UserError, match="another process has taken over"), writing(output):
        (path,) = output.parent.glob("state/*.lease/*.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "token": "another's"}))
        write_text(output, "mine")
    assert output.read_text() == "theirs"
    assert sorted(found.name for found in output.parent.iterdir()) == [output.name, "state"]
    path.unlink()
    with writing(output):
        write_text(output, "mine")
    assert output.read_text() == "mine"


@pytest.mark.parametrize("text", ["[]", "7", '"x"', "null", '{"pid": "a"}', '{"finished": 1}', "{"])
def test_a_damaged_lease_is_waited_out(output, monkeypatch, text):
    monkeypatch.setattr(lease, "LEASE", 0.3)
    folder = output.parent / "state" / f"{output.name}.lease"
    folder.mkdir(parents=True)
    (folder / "000001.json").write_text(text)
    with writing(output) as wanted:
        assert wanted
