"""statement.json: encoder and exports, and what they were made from, as an in-toto statement.

Its predicate is SLSA provenance v1 (https://slsa.dev/spec/v1.0/provenance). It names the run's
identity and the lock's SHA-256, so that a signature of it is one of the whole run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.bundle import signatures
from mlcd.commands.audit.bundle.run import Lacking, Run, digest_of
from mlcd.utils.files import sha256_file

if TYPE_CHECKING:
    from in_toto_attestation.v1.statement import Statement

NAME = "statement"
FILE = signatures.STATEMENT
BUILD_TYPE = "https://pypi.org/project/mlcd/#run-v1"
BUILDER = "https://pypi.org/project/mlcd/#rule-audit"
_PREDICATE = "https://slsa.dev/provenance/v1"


def write(run: Run, folder: Path) -> list[Path]:
    """Write the statement and, if the run has a key, the signatures of it and of the exports."""
    try:
        from google.protobuf.json_format import MessageToDict

        statement = _statement(run)
    except ImportError:
        raise Lacking("in-toto-attestation") from None
    text = json.dumps(MessageToDict(statement.pb), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
    written = [folder / FILE]
    if run.key is not None:
        written += signatures.sign(run, folder, folder / FILE)
    return written


def _statement(run: Run) -> Statement:
    from google.protobuf.json_format import MessageToDict
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    subjects = [
        ResourceDescriptor(name=path, digest={"sha256": digest_of(run.lock["files"][path])}).pb
        for path in run.files("train/encoder.*", "train/regions.*", "export/*/*")
        if digest_of(run.lock["files"][path])
    ]
    if not subjects:  # of a run whose encoder is another's, or that has none
        subjects = [ResourceDescriptor(name="lock.json", digest={"sha256": _lock(run)}).pb]
    made = Provenance()
    definition, details = made.build_definition, made.run_details
    definition.build_type = BUILD_TYPE
    stages = run.lock["stages"].items()
    definition.external_parameters.update({name: stage["section"] or {} for name, stage in stages})
    definition.internal_parameters.update(
        {name: {"code": stage["code"], **stage["how"]} for name, stage in stages}
    )
    definition.resolved_dependencies.extend(one.pb for one in _dependencies(run))
    details.builder.id = BUILDER
    versions = {
        "mlcd": str(run.system.get("mlcd", "")),
        "python": str(run.system.get("python", "")),
    }
    packages = run.system.get("packages", {})
    versions |= {name: packages[name] for name in ("snakemake", "torch") if name in packages}
    details.builder.version.update(versions)
    details.metadata.invocation_id = run.lock["root"]
    details.byproducts.append(ResourceDescriptor(name=locks.LOCK.as_posix(),
                                                 digest={"sha256": _lock(run)}).pb)  # fmt: skip
    details.byproducts.extend(
        ResourceDescriptor(name=f"audit/{name}", digest={"sha256": digest}).pb
        for name, digest in sorted(run.lock["beside"].items())
    )
    statement = Statement(subjects, _PREDICATE, MessageToDict(made))
    statement.validate()
    return statement


def _dependencies(run: Run) -> list[Any]:
    """Return inputs and source revision."""
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor

    found = []
    for entry in run.lock["inputs"]:
        if entry["of"] == "bytes":
            found.append(ResourceDescriptor(name=entry["name"], digest={"sha256": entry["hash"]}))
        else:
            about = {"hash": entry["hash"], "of": entry["of"]}
            found.append(ResourceDescriptor(name=entry["name"], annotations=about))
    if source := run.system.get("revision"):
        about = {"modified": bool(source.get("modified"))}
        digest = {"gitCommit": source["commit"]}
        found.append(ResourceDescriptor(name="mlcd", digest=digest, annotations=about))
    return found


def _lock(run: Run) -> str:
    return sha256_file(run.results / locks.LOCK)
