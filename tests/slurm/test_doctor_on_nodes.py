"""`mlcd doctor` on the real cluster: sound, and with one fault planted at a time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import apart
import pytest
import yaml

#: Mounts of their own are the machine's to refuse; the cluster itself does without (cluster.py).
own_mounts = pytest.mark.skipif(not apart.possible(), reason="unshare --mount is not allowed here")
ROOT = Path(__file__).parent.parent.parent
#: The test cluster's nodes are smaller than any real one's.
SMALL = {
    r"cores: 8": "cores: 1",
    r"time_limit: \d+": "time_limit: 120",
    r"node_memory: \d+": "node_memory: 3500",
}


@pytest.fixture
def profile(tmp_path):
    """Return a function that writes a profile for this cluster, some of its lines replaced."""

    def write(changes: dict[str, str], name: str = "slurm-cpu") -> Path:
        text = (ROOT / "profiles" / name / "config.yaml").read_text()
        for old, new in {**SMALL, **changes}.items():
            text, found = re.subn(old, new, text)
            assert found, old
        (tmp_path / "config.yaml").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"results": str(tmp_path / "results")}))
    return path


def doctor(profile: Path, config: Path, *options: str, before: str = "", python=sys.executable):
    """Run it, `before` in the same shell first; returns exit code, checks by name, all output."""
    command = f'{before}\nexec {python} -m mlcd doctor --profile "$1" --config "$2" "${{@:3}}"'
    done = subprocess.run(
        ["bash", "-c", command, "doctor", profile, config, *options], cwd=ROOT,
        capture_output=True, text=True, timeout=250,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    rows: dict[str, str] = {}
    name = ""
    for line in done.stdout.splitlines():
        if not line.startswith(" "):
            name = line[6:29].strip()
        rows[name] = " ".join([*rows.get(name, "").split(), *line.split()])
    return done.returncode, rows, done.stdout + done.stderr


@pytest.mark.short
def test_a_sound_cluster_passes(profile, config):
    code, rows, told = doctor(profile({}), config)
    assert code == 0, told
    assert "4 nodes up, 2 cores and 4.0 GB at most, 120 min at most" in rows["partition main"]
    assert re.match(
        r"ok shared disk node\d and this machine read each other's", rows["shared disk"]
    )
    assert "imports all" in rows["environment"]
    assert "3600 s after its end" in rows["status command"]
    assert "FAIL" not in told
    # Nothing of the look is left.
    assert list((config.parent / "results").iterdir()) == []


@pytest.mark.short
def test_a_gang_on_two_nodes_adds_up_and_trains(profile, config):
    code, rows, told = doctor(profile({}), config, "--nodes", "2")
    assert code == 0, told
    assert re.search(r"ok gang of 2 nodes 2 ranks add up 32 MB at \d", rows["gang of 2 nodes"])
    assert re.search(r"ok training 20 steps of a small encoder, \d+ ms", rows["training"])
    assert list((config.parent / "results").iterdir()) == []


@pytest.mark.short
def test_an_unknown_partition_names_the_known(profile, config):
    code, rows, told = doctor(profile({r"partition: main": "partition: mian"}), config)
    assert code == 2
    assert rows["partition mian"].startswith("FAIL")
    assert "partition: one of grace, high, main, in the profile" in rows["partition mian"]
    # No node was looked at.
    assert "shared disk" not in told


def test_no_partition_named_means_the_default_one(profile, config):
    code, rows, told = doctor(profile({r"partition: main": 'partition: ""'}), config, "--wait", "0")
    assert code == 0, told
    assert rows["partition main"].startswith("ok")


def test_more_memory_time_and_cores_than_a_node_has(profile, config):
    large = {
        r"node_memory: 3500": "node_memory: 64000",
        r"time_limit: 120": "time_limit: 1440",
        r"cores: 1\b": "cores: 3",
    }
    code, rows, _ = doctor(profile(large), config, "--wait", "0")
    assert code == 2
    assert re.search(
        r"evaluate 8000 MB.*the largest node of partition main has 4000", rows["memory"]
    )
    assert "node_memory: 4000 in the profile" in rows["memory"]
    assert "up to 1440 min; partition main allows 120" in rows["time limit"]
    assert "time_limit: 120, in the profile" in rows["time limit"]
    assert "train 6" in rows["cores"] or "embed 3" in rows["cores"]


def test_an_account_that_is_not_there(profile, config):
    code, rows, _ = doctor(profile({r'account: ""': "account: vision"}), config, "--wait", "0")
    assert code == 2
    if subprocess.run(["sacct", "--noheader"], capture_output=True).returncode == 0:
        assert "vision is not yours; root has: default" in rows["account"]
    else:
        assert 'fix: account: "" in the profile' in rows["account"]


@own_mounts
@pytest.mark.short
def test_a_folder_that_the_nodes_do_not_share(profile, config, tmp_path):
    """A disk of the login node's own: mounted where the nodes cannot see it."""
    private = f"mkdir -p {tmp_path}/results && mount -t tmpfs tmpfs {tmp_path}/results || exit 9"
    code, rows, told = doctor(
        profile({}), config,
        before=f'if [ -z "$APART" ]; then APART=1 exec unshare --mount --propagation private '
               f'bash -c \'{private}; exec {sys.executable} -m mlcd doctor --profile "$1" '
               f'--config "$2"\' doctor "$1" "$2"; fi',
    )  # fmt: skip
    assert code == 2, told
    assert re.search(r"FAIL shared disk node\d does not see .*/results/", rows["shared disk"])
    assert "fix: set results" in rows["shared disk"]
    assert rows["environment"].startswith("ok")


@own_mounts
def test_a_python_that_the_nodes_do_not_have(profile, config, tmp_path):
    venv = Path(sys.prefix)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    code, rows, told = doctor(
        profile({}), config,
        before=f"exec unshare --mount --propagation private bash -c 'mount --bind {venv} {hidden} "
               f'&& exec {hidden}/bin/python -m mlcd doctor --profile "$1" --config "$2"\' '
               'doctor "$1" "$2"',
    )  # fmt: skip
    assert code == 2, told
    assert rows["shared disk"].startswith("ok")
    assert f"cannot start {hidden}/bin/python" in rows["environment"]
    assert "disk that the nodes share" in rows["environment"]


def test_gpus_that_torch_does_not_see(profile, config):
    """The cluster's GPUs are device files that nothing drives."""
    narrow = {r"ranks: 8": "ranks: 2", r"download: 16": "download: 2",
              r"label_summary: 16": "label_summary: 2"}  # fmt: skip
    code, rows, told = doctor(profile(narrow, "slurm"), config)
    assert code == 2, told
    assert "was given CUDA_VISIBLE_DEVICES=0, but torch" in rows["gpu"]
    assert "fix: install torch built for CUDA" in rows["gpu"]


def test_a_busy_partition_is_no_fault(profile, config):
    busy = subprocess.run(
        ["sbatch", "--parsable", "--exclusive", "--nodes=4", "--output=/dev/null",
         "--wrap", "srun sleep 200"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    try:
        code, rows, told = doctor(profile({}), config, "--wait", "2")
    finally:
        subprocess.run(["scancel", busy.stdout.strip()], check=True)
    assert code == 0, told
    assert "warn node of main none was free within 2 s" in rows["node of main"]
    assert "--wait 20" in rows["node of main"]
