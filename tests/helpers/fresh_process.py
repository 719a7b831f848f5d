"""Examples as a user types them: each in a process that nobody has imported anything into.

    python -m helpers.fresh_process JOBS.json RESULTS

A job is {folder, name, code, values}: the code runs in the folder, then the expressions of `values`
(name → Python, of numbers, texts, lists, arrays and tensors) are saved as RESULTS/N.json. The
processes are forked from one that has imported torch alone: torchvision, timm, open_clip and
transformers are as fresh as after a start of Python. `then`: further jobs in the same process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any


def run(jobs: list[dict[str, Any]], folder: Path) -> list[list[dict[str, Any]]]:
    """Return the values of each job, and of those in its `then`.

    Raises AssertionError with what an example raised.
    """
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-m", "helpers.fresh_process", str(folder / "jobs.json"), str(folder)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return [json.loads((folder / f"{n}.json").read_text()) for n in range(len(jobs))]


def _main(jobs: list[dict[str, Any]], results: Path) -> int:
    import torch

    torch.set_num_threads(1)
    others = {"torchvision", "timm", "open_clip", "transformers", "mlcd.utils.compat"}
    assert not others & set(sys.modules)
    failed = 0
    for number, job in enumerate(jobs):
        if (child := os.fork()) == 0:
            status = 1
            try:
                steps = [job, *job.get("then", [])]
                (results / f"{number}.json").write_text(json.dumps([_run(one) for one in steps]))
                status = 0
            except BaseException:
                print(f"{job['name']}:", traceback.format_exc(), file=sys.stderr, flush=True)
            os._exit(status)
        failed += os.waitpid(child, 0)[1] != 0
    return int(failed > 0)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    os.chdir(job["folder"])
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(job["code"], job["name"], "exec"), names)
    return {key: _plain(eval(text, names)) for key, text in job["values"].items()}


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


if __name__ == "__main__":
    sys.exit(_main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])))
