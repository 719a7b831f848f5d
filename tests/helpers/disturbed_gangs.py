"""What ranks of gangs do that are killed, frozen, replaced or interrupted; imported by name."""

from __future__ import annotations

import os
import time
from pathlib import Path

from mlcd.launch import preemption
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_json


def wait_for(condition, seconds: float = 120.0):
    """Return the first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return value


def meet() -> int:
    """Wait for the other ranks as long as a clustering does."""
    import torch.distributed as dist

    port = int(os.environ["MASTER_PORT"])
    world_size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    dist.TCPStore("127.0.0.1", port, world_size, rank == 0)
    time.sleep(60)
    return world_size


def publish(folder: str, word: str) -> str:
    """Wait until told, and then write; leave what came of it."""
    home, rank = Path(folder), os.environ["RANK"]
    (home / f"{word}-{rank}.here").touch()
    while not (home / f"{word}.go").exists():
        time.sleep(0.01)
    try:
        write_json(home / f"out-{rank}.json", word)
    except UserError as error:
        (home / f"{word}-{rank}.refused").write_text(str(error))
        raise
    return word


def publish_now(folder: str) -> str:
    write_json(Path(folder) / "out.json", 1)
    return "done"


def heed(folder: str, saves: bool) -> None:
    """Work until asked to stop; then save, or continue in spite of it."""
    home, rank = Path(folder), os.environ["RANK"]
    while not (preemption.stop_asked() and saves):
        (home / f"{rank}.working").touch()
        time.sleep(0.05)
    time.sleep(0.5)
    (home / f"{rank}.saved").touch()
    preemption.saved()


def fail_after_progress(
    folder: str, failures: int, saves: bool, message: str = "this time it fails"
) -> int:
    """Fail in the first starts, after something was saved or not; return the number of starts."""
    home = Path(folder)
    starts = len(list(home.glob("start-*"))) + 1
    (home / f"start-{starts}").touch()
    if saves:
        (home / f"step-{starts}").touch()
    if starts <= failures:
        raise ValueError(message)
    return starts
