"""roc-validator, the community's judge of RO-Crates, in an environment of its own.

Its requirements do not fit with ours (rich), so it is installed beside. Offline it lacks the two
JSON-LD contexts that our crates name, and would leave out 48 of its 85 checks without an error.
They are built here: terms of schema.org from `rocrate`'s own data, the others as RO-Crate 1.1 and
Workflow Run RO-Crate have them, which are the ones that roc-validator's profiles ask for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

VERSION = "0.13.0"
_RUN = "https://w3id.org/ro/terms/workflow-run"
_SCIENCE = "https://bioschemas.org"
_OF_RUNS = ("ParameterConnection", "connection", "sourceParameter", "targetParameter", "sha256")
_PRIME = """
import json, sys
import requests
from requests_cache import CachedRequest, CachedResponse, CachedSession
session = CachedSession(sys.argv[1], backend="sqlite", expire_after=-1)
for url, value in json.load(sys.stdin).items():
    request = requests.Request("GET", url).prepare()
    response = CachedResponse(
        url=url, status_code=200, content=json.dumps(value).encode(),
        headers={"Content-Type": "application/ld+json"},
        request=CachedRequest.from_request(request))
    session.cache.save_response(response, session.cache.create_key(request))
"""


class Missing(Exception):
    """The validator cannot be installed here; it says why."""


def install(folder: Path) -> None:
    """Install the validator below `folder` and give it the contexts. Raises :class:`Missing`."""
    done = folder / "installed"
    if done.is_file() and done.read_text() == VERSION:
        return
    pip = [sys.executable, "-m", "pip", "--python", str(_python(folder)), "install", "--quiet"]
    words = [
        [sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder / "env")],
        [*pip, "--disable-pip-version-check", "--no-input", f"roc-validator=={VERSION}"],
    ]
    for command in words:
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=400, check=False, env=_alone()
            )
        except subprocess.TimeoutExpired:
            raise Missing("pip took more than 400 s") from None
        if ended.returncode:
            said = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")]
            raise Missing(said[-1] if said else f"exit status {ended.returncode}")
    (folder / "cache.sqlite").unlink(missing_ok=True)
    subprocess.run(
        [_python(folder), "-c", _PRIME, folder / "cache"],
        input=json.dumps(_contexts()), text=True, check=True, env=_alone(),
    )  # fmt: skip
    done.write_text(VERSION)


def validate(folder: Path, crate: Path) -> dict[str, Any]:
    """Return what the validator in `folder` says of a crate, as its JSON."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    subprocess.run(
        [folder / "env" / "bin" / "rocrate-validator", "validate", "--offline",
         "--cache-path", folder / "cache", "-p", "provenance-run-crate-0.5", "-l", "required",
         "-f", "json", "-o", report, "--no-paging", crate],
        capture_output=True, check=False, env=_alone(),
    )  # fmt: skip
    return json.loads(report.read_text(encoding="utf-8"))


def _alone() -> dict[str, str]:
    """The environment without our own packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _python(folder: Path) -> Path:
    return folder / "env" / "bin" / "python"


def _contexts() -> dict[str, Any]:
    """Return address → context."""
    import rocrate

    data = Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld"
    terms = json.loads(data.read_text(encoding="utf-8"))["@context"]
    terms |= {name: f"{_SCIENCE}/{name}" for name in ("ComputationalWorkflow", "FormalParameter")}
    terms |= {name: f"{_SCIENCE}/ComputationalWorkflow#{name}" for name in ("input", "output")}
    return {
        "https://w3id.org/ro/crate/1.1/context": {"@context": terms},
        f"{_RUN}/context": {"@context": {name: f"{_RUN}#{name}" for name in _OF_RUNS}},
    }
