"""sbom.json: the installed packages as a CycloneDX 1.6 bill of materials.

The hash of a package is the SHA-256 of its RECORD, in which the installer lists the hashes of all
its files. A package whose programs name their interpreter has another RECORD in another folder.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mlcd.commands.audit.bundle.run import Lacking, Run
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file

NAME = "sbom"
FILE = "sbom.json"


def write(run: Run, folder: Path) -> list[Path]:
    """Write the bill of materials of this environment; no times, places or serial numbers."""
    if importlib.util.find_spec("cyclonedx_py") is None:
        raise Lacking("cyclonedx-bom")
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    reader: Any = Bom  # its decorator adds what mypy does not see
    bom = reader.from_json(data=_environment())
    records = records_of(sys.path)
    for component in bom.components:
        # A package from a folder of this machine says where that is.
        component.external_references = [
            one for one in component.external_references if not str(one.url).startswith("file:")
        ]
        if digest := records.get(_normal(component.name)):
            component.hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
    # Its own option for equal output does the same; reading it back has set them.
    bom.serial_number = None
    bom.metadata.timestamp = None
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    (folder / FILE).write_text(outputter.output_as_string(indent=1) + "\n", encoding="utf-8")
    return [folder / FILE]


def records_of(places: list[str]) -> dict[str, str]:
    """Return package (as PEP 503 writes it) → SHA-256 of its RECORD; the first place counts."""
    found: dict[str, str] = {}
    for place in places:
        for record in sorted(Path(place or ".").glob("*.dist-info/RECORD")):
            name = importlib.metadata.PathDistribution(record.parent).metadata["Name"]
            found.setdefault(_normal(name), sha256_file(record))
    return found


def _environment() -> dict[str, object]:
    """Return what CycloneDX's own program says of this environment."""
    words = ["environment", "--output-reproducible", "--no-validate", "--spec-version", "1.6",
             "--output-format", "JSON", "--output-file"]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="mlcd-sbom-") as scratch:
        output = Path(scratch) / FILE
        done = subprocess.run(
            [sys.executable, "-m", "cyclonedx_py", *words, str(output)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode or not output.is_file():
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise UserError(f"cyclonedx-py: {said[-1] if said else 'failed'}; update cyclonedx-bom")
        return dict(json.loads(output.read_text(encoding="utf-8")))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
