"""How long Snakemake needs to plan a preset's run at its real size, and what it plans.

    python benchmarks/plan_scale.py laion400m-vit-l14 coyo700m-vit-l14 imagenet-rn50
    python benchmarks/plan_scale.py laion-times-ten --repeats 3 --plan-only

Lists with as many rows as the data set has are made (equal rows, so that they stay small), and
`snakemake --dry-run` is run over them twice: with nothing done yet, and with everything done. For
the second, every output is an empty file that `snakemake --touch` has recorded as made. Prints
seconds, peak memory, jobs by rule, and the longest shell command. Snakemake hands a long one to the
shell as a file; Linux limits the arguments of the program in it. laion-times-ten is the preset of
LAION with ten times the lists, whose goal is a plan in a minute and a gigabyte. Planning is the
work of one thread, so the CPU seconds are the wall seconds of a core that does nothing else; the
goal is compared with them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import goals
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parent.parent
#: Preset → profile, names of its lists, rows of all together: the images of the paper for
#: LAION-400M and COYO-700M, the training images for ImageNet.
SIZES = {
    "laion400m-vit-l14": ("slurm", [f"part-{i:05d}" for i in range(32)], 389_737_314),
    "coyo700m-vit-l14": ("slurm", [f"part-{i:05d}" for i in range(128)], 686_591_232),
    "imagenet-rn50": ("slurm-1gpu", ["train"], 1_281_167),
}
#: Not a preset: the one of LAION at ten times its size.
TEN = "laion-times-ten"
LARGER = {TEN: ("slurm", [f"part-{i:05d}" for i in range(320)], 3_897_373_140)}
#: CPU seconds and MB that planning may take at any size here.
GOAL = (60, 1000)
#: Linux: bytes of the arguments of a program with a stack of 8 MB.
ARGUMENTS = 2 << 20
_GROUP = 1 << 20


@dataclass
class Plan:
    """What a dry run told, its wall and CPU seconds, and its peak memory in MB."""

    text: str
    wall: float
    cpu: float
    peak: int

    def jobs(self) -> Counter[str]:
        """Return rule → number of jobs, from the table that comes first."""
        table = re.search(r"^Job stats:\n(.*?)^total", self.text, re.M | re.S)
        found = re.findall(r"^([a-z_]+) +(\d+)$", table.group(1) if table else "", re.M)
        return Counter({rule: int(number) for rule, number in found})


def write_lists(folder: Path, preset: str) -> None:
    """Write the preset's lists below `folder`, parquet of equal rows."""
    config = yaml.safe_load(preset_file(preset).read_text())
    prepare = config["prepare"]
    columns = [prepare.get("url_column", "url"), prepare.get("caption_column", "caption")]
    _, names, rows = (SIZES | LARGER)[preset]
    given = folder / config["metadata"][0]
    if not given.suffix:  # a folder of images: one file says that it holds them all
        given, columns = given / "images.parquet", [prepare.get("image_column", "image")]
    paths = [Path(str(given).replace("*", name)) for name in names]
    paths[0].parent.mkdir(parents=True)
    share = rows // len(paths)
    _write_list(paths[0], share, columns)
    for path in paths[1:-1]:
        shutil.copy(paths[0], path)
    _write_list(paths[-1], rows - share * (len(paths) - 1), columns)


def _write_list(path: Path, rows: int, columns: list[str | None]) -> None:
    value = pa.array([b"http://127.0.0.1/0.jpg"], pa.binary())
    column = value.take(np.zeros(_GROUP, np.int32))
    table = pa.table({name: column for name in columns if name})
    with pq.ParquetWriter(path, table.schema) as writer:
        for start in range(0, rows, _GROUP):
            writer.write_table(table.slice(0, min(_GROUP, rows - start)))


def preset_file(preset: str) -> Path:
    name = "laion400m-vit-l14" if preset == TEN else preset
    return ROOT / "workflow" / "presets" / f"{name}.yaml"


def snakemake(folder: Path, preset: str, *options: str) -> Plan:
    """Run snakemake in `folder` with the preset; peak memory is that of the largest process."""
    profile = (SIZES | LARGER)[preset][0]
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile",
        "--directory", folder, "--configfile", preset_file(preset),
        "--profile", ROOT / "profiles" / profile, *options,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - started
        output.seek(0)
        text = output.read().decode()
    if status:
        raise SystemExit(text[-3000:])
    return Plan(text, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024)


def pretend(folder: Path, preset: str, planned: Plan) -> None:
    """Make every output of the plan an empty file that Snakemake takes as made."""
    outputs = re.findall(r"^    output: (.*)$", planned.text, re.M)
    for output in (path for line in outputs for path in line.split(", ")):
        path = folder / output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    # Without the profile's executor: nothing may be submitted.
    snakemake(folder, preset, "--touch", "--executor", "local", "--cores", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", nargs="+", choices=[*SIZES, *LARGER])
    parser.add_argument("--plan-only", action="store_true", help="only what nothing is done of")
    parser.add_argument("--repeats", type=int, default=1, help="of the first plan [1]")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for preset in arguments.preset:
        with tempfile.TemporaryDirectory(prefix="mlcd-plan-") as name:
            folder = Path(name)
            # The presets add to config.yaml, whose data set to evaluate on is the demo's.
            shutil.copy(ROOT / "config.yaml", folder)
            (folder / "demo").symlink_to(ROOT / "demo")
            write_lists(folder, preset)
            plans = [
                snakemake(folder, preset, "--dry-run", "--printshellcmds")
                for _ in range(arguments.repeats)
            ]
            planned = plans[-1]
            again = None
            if not arguments.plan_only:
                pretend(folder, preset, planned)
                again = snakemake(folder, preset, "--dry-run")
        jobs = planned.jobs()
        commands = re.findall(r"^Shell command: (.*?)^\[", planned.text, re.M | re.S)
        print(f"{preset}: {sum(jobs.values())} jobs: ", end="")
        print(", ".join(f"{rule} {number}" for rule, number in jobs.most_common()))
        for what, plan in (("plan", planned), ("nothing to do", again)):
            if plan:
                print(f"  {what}: {plan.wall:.1f} s, {plan.cpu:.1f} CPU s, {plan.peak} MB")
        if again:
            print(f"  jobs left after everything was made: {sum(again.jobs().values())}")
        print(f"  longest shell command: {max(map(len, commands), default=0)} of {ARGUMENTS} bytes")
        times, peak = sorted(plan.cpu for plan in plans), max(plan.peak for plan in plans)
        middle = times[len(times) // 2]
        print(
            f"  CPU seconds of {len(plans)} plans: {times[0]:.1f} / {middle:.1f} / {times[-1]:.1f}"
            f", goal ≤ {GOAL[0]}; {peak} MB, goal ≤ {GOAL[1]}; "
            f"met: {'yes' if middle <= GOAL[0] and peak <= GOAL[1] else 'no'}"
        )
        if preset == TEN:
            row = f"planning {sum(jobs.values()):,} jobs, {peak} MB"
            goals.state(row, times, {"a minute": [GOAL[0]]}, 1.0)


if __name__ == "__main__":
    main()
