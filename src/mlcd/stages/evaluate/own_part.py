"""What tasks with a part of their own share: one result, made once, which a killed call resumes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlcd.launch import lease
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json, state_dir
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.logging import LOGGER
from mlcd.utils.records import read_record


def identity_of(section: str, *others: Any) -> str:
    """Return a hash of what a result depends on: code, settings, and `others`, JSON values.

    `section`: the keys as JSON. Where the data set lies is none of them: its content is.
    """
    settings = json.loads(section)
    for dataset in settings["datasets"]:
        del dataset["path"]
    return sha256_json([code_hash("evaluate"), settings, *others])


@contextmanager
def making(output: str | os.PathLike[str], identity: str) -> Iterator[Path | None]:
    """Yield the folder of saved state in which the result of `identity` is to be made.

    None if there is nothing to do: the result is there, or another process has made it meanwhile.
    The folder goes when the result is written; after a kill it waits for the next call.
    """
    if _is_there(output, identity):
        LOGGER.info("%s: up to date", output)
        yield None
        return
    with lease.writing(output, identity) as wanted:
        if not wanted:
            yield None
            return
        state = state_dir(output, identity)
        yield state
        shutil.rmtree(state)


def _is_there(output: str | os.PathLike[str], identity: str) -> bool:
    """True if `output` is the result of `identity`; a damaged one is made again."""
    try:
        return bool(read_record(output, "evaluate").get("identity") == identity)
    except UserError:
        return False
