"""ro-crate-metadata.json: the run as a Provenance Run Crate (Workflow Run RO-Crate 0.5).

The bundle is the crate. Files of the results are named by an address of their own, since they lie
outside of it: `arcp://uuid,…/PATH`, where the UUID follows from the run's identity. Source of the
terms: https://www.researchobject.org/workflow-run-crate/profiles/provenance_run_crate/
"""

from __future__ import annotations

import json
import shutil
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcd.commands.audit.bundle import times
from mlcd.commands.audit.bundle.jobs import Job, by_stage, jobs_of
from mlcd.commands.audit.bundle.run import Lacking, Run, digest_of
from mlcd.commands.audit.nodes import ORDER
from mlcd.utils.files import sha256_file
from mlcd.utils.project import SNAKEFILE

if TYPE_CHECKING:
    from rocrate.model.entity import Entity
    from rocrate.rocrate import ROCrate

NAME = "crate"
FILE = "ro-crate-metadata.json"
#: Jobs up to which each is an action of its own; more of them, and a stage is one.
MOST_JOBS = 2000
_PROFILES = (
    ("https://w3id.org/ro/wfrun/process/0.5", "Process Run Crate", "0.5"),
    ("https://w3id.org/ro/wfrun/workflow/0.5", "Workflow Run Crate", "0.5"),
    ("https://w3id.org/ro/wfrun/provenance/0.5", "Provenance Run Crate", "0.5"),
    ("https://w3id.org/workflowhub/workflow-ro-crate/1.0", "Workflow RO-Crate", "1.0"),
)
_DONE = "http://schema.org/CompletedActionStatus"
_TYPES = {
    ".json": "application/json", ".jsonl": "application/jsonl", ".csv": "text/csv",
    ".md": "text/markdown", ".html": "text/html", ".svg": "image/svg+xml", ".png": "image/png",
    ".h5": "application/x-hdf5", ".tar": "application/x-tar", ".dot": "text/vnd.graphviz",
    ".parquet": "application/vnd.apache.parquet", ".diff": "text/x-diff", ".smk": "text/plain",
    ".sig": "application/json", "": "text/plain", ".safetensors": "application/octet-stream",
}  # fmt: skip


def write(run: Run, folder: Path) -> list[Path]:
    """Write the crate's description, and the workflow's files, which belong to it."""
    try:
        import rocrate.rocrate as library
    except ImportError:
        raise Lacking("rocrate") from None
    jobs = jobs_of(run.lock)
    written = []
    if len(jobs) > MOST_JOBS:
        written.append(_table(run, jobs, folder / "jobs.parquet"))
        jobs = by_stage(jobs)
    written += _workflow(folder)
    with warnings.catch_warnings():
        # It warns of files that are not in the crate, which most of ours are not.
        warnings.simplefilter("ignore")
        crate = library.ROCrate(version="1.1")
        _Description(crate, run, folder).fill(jobs, whole=not (folder / "jobs.parquet").exists())
        crate.metadata.write(folder)
    return [*written, folder / FILE]


def base_of(identity: str) -> str:
    """Return the address of the results of the run with this identity; it ends with a slash."""
    return f"arcp://uuid,{uuid.uuid5(uuid.NAMESPACE_OID, identity)}/"


def _workflow(folder: Path) -> list[Path]:
    """Copy Snakefile and rules."""
    root = SNAKEFILE.parents[1]
    found = []
    for source in [SNAKEFILE, *sorted((root / "rules").glob("*.smk"))]:
        target = folder / source.relative_to(root)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        found.append(target)
    return found


def _table(run: Run, jobs: list[Job], path: Path) -> Path:
    """Write a row for each file of each job: stage, part, path, SHA-256, content hash, bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for job in jobs:
        for name in job.files:
            node = run.lock["files"][name]
            rows.append({
                "stage": job.stage, "part": job.part, "path": name, "sha256": digest_of(node),
                "hash": node["hash"], "hash_of": node["of"], "bytes": node["size"],
                "inputs": sorted(node["inputs"]),
            })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


class _Description:
    """Fills a crate of RO-Crate 1.1 with what a run's lock and machine say."""

    def __init__(self, crate: ROCrate, run: Run, folder: Path) -> None:
        self.crate, self.run, self.folder = crate, run, folder
        self.base = base_of(run.lock["root"])
        self.version = str(run.system.get("mlcd", "unknown"))
        self.files: dict[str, Entity] = {}
        crate.metadata.extra_contexts.append("https://w3id.org/ro/terms/workflow-run/context")

    def fill(self, jobs: list[Job], *, whole: bool) -> None:
        """Describe the run; `whole`: every file of the results is an entity of its own."""
        self._root()
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                self._part(path)
        self._part(self.folder / times.FILE)  # written when all else is
        stages = [stage for stage in ORDER if any(job.stage == stage for job in jobs)]
        tools = {stage: self._tool(stage) for stage in stages}
        workflow = self._main(tools, jobs)
        self.inputs = [(entry, self._input(entry)) for entry in self.run.lock["inputs"]]
        self._beside()
        sections = {stage: self._section(stage) for stage in stages}
        actions = [
            self._action(job, tools[job.stage], sections[job.stage], whole=whole) for job in jobs
        ]
        self._whole(workflow, actions, list(sections.values()), jobs, tools)

    def add(self, address: str, kind: str, /, **properties: Any) -> Entity:
        """Add an entity of this type that is no file, and return it."""
        from rocrate.model.contextentity import ContextEntity

        known = {key: value[0] if isinstance(value, list) and len(value) == 1 else value
                 for key, value in properties.items() if value not in (None, [], "")}  # fmt: skip
        entity = ContextEntity(self.crate, address, properties={"@type": kind, **known})
        return self.crate.add(entity)

    def _root(self) -> None:
        root, source = self.crate.root_dataset, self.run.system.get("revision") or {}
        root["name"] = f"Run {self.run.lock['root'][:16]} of mlcd"
        root["description"] = (
            "A vision encoder trained by Multi-Label Cluster Discrimination: what each job of the "
            "run read and wrote, by hash. Times of the run are in times.json; datePublished is the "
            "day of the source revision, or 1970-01-01 if it is not known."
        )
        root["identifier"] = self.run.lock["root"]
        root["datePublished"] = str(source.get("date") or "1970-01-01")
        root["license"] = self.add(
            "#license-of-results", "CreativeWork", name="Terms of the results",
            description="Not recorded by the run. They depend on the terms of its images.",
        )  # fmt: skip
        root["conformsTo"] = [
            self.add(address, "CreativeWork", name=name, version=version)
            for address, name, version in _PROFILES
        ]

    def _part(self, path: Path) -> None:
        """Add a file of the bundle."""
        name = path.relative_to(self.folder).as_posix()
        about: dict[str, Any] = {"name": name, "encodingFormat": _TYPES.get(path.suffix)}
        if not times.varies(name):
            about |= {"sha256": sha256_file(path), "contentSize": str(path.stat().st_size)}
        if name == "workflow/Snakefile":
            about["@type"] = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
        known = {key: value for key, value in about.items() if value is not None}
        self.files[name] = self.crate.add_file(path, name, properties=known)

    def _tool(self, stage: str) -> Entity:
        code = self.run.lock["stages"].get(stage, {}).get("code")
        return self.add(
            f"#tool-{stage}", "SoftwareApplication", name=f"mlcd {stage}",
            softwareVersion=self.version, url="https://pypi.org/project/mlcd/",
            identifier=f"code {code}" if code else None,
        )  # fmt: skip

    def _main(self, tools: dict[str, Entity], jobs: list[Job]) -> Entity:
        """Describe the workflow: its language, its tools, its steps, and what goes where."""
        workflow = self.files["workflow/Snakefile"]
        self.crate.root_dataset["mainEntity"] = workflow
        workflow["name"] = "mlcd"
        workflow["version"] = self.version
        workflow["url"] = "https://arxiv.org/abs/2407.17331"
        workflow["license"] = "https://spdx.org/licenses/Apache-2.0"
        workflow["programmingLanguage"] = self.add(
            "#snakemake-language", "ComputerLanguage", name="Snakemake", alternateName="SMK",
            url="https://snakemake.readthedocs.io", version=self._package("snakemake"),
        )  # fmt: skip
        workflow["hasPart"] = list(tools.values())
        read = {stage: set[str]() for stage in tools}
        for job in jobs:
            read[job.stage] |= {self.run.lock["files"][path]["stage"] for path in job.inputs}
        outputs = {stage: self._parameter(stage, "output") for stage in tools}
        self.steps = {}
        for position, (stage, tool) in enumerate(tools.items(), 1):
            before = [other for other in tools if other in read[stage] - {stage}]
            inputs = {other: self._parameter(stage, f"from-{other}") for other in before}
            tool["input"] = list(inputs.values())
            tool["output"] = [outputs[stage]]
            connections = [
                self.add(
                    f"#connection-{other}-{stage}", "ParameterConnection",
                    sourceParameter=outputs[other], targetParameter=target,
                )
                for other, target in inputs.items()
            ]  # fmt: skip
            self.steps[stage] = self.add(
                f"#step-{stage}", "HowToStep", name=stage, position=str(position),
                workExample=tool, connection=connections,
            )  # fmt: skip
        workflow["step"] = list(self.steps.values())
        return workflow

    def _parameter(self, stage: str, name: str) -> Entity:
        return self.add(
            f"#parameter-{stage}-{name}", "FormalParameter", name=f"{stage} {name}",
            additionalType="Collection",
            conformsTo={"@id": "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"},
        )  # fmt: skip

    def _input(self, entry: dict[str, Any]) -> Entity:
        """Describe a file from outside of the results: it has a name and a hash, no place."""
        whole, size = entry["of"] == "bytes", entry.get("bytes")
        return self.add(
            f"#input-{entry['hash'][:16]}", "File", name=entry["name"],
            contentSize=None if size is None else str(size),
            sha256=entry["hash"] if whole else None,
            identifier=None if whole else f"{entry['of']}: {entry['hash']}",
        )  # fmt: skip

    def _beside(self) -> None:
        """Describe lock, definitions, machine and source, which lie beside the bundle."""
        for name, digest in sorted(self.run.lock["beside"].items()):
            self._outside(f"audit/{name}", digest, name=f"audit/{name}")
        lock = self.run.results / "audit" / "lock.json"
        self._outside("audit/lock.json", sha256_file(lock), name="audit/lock.json")

    def _outside(self, path: str, digest: str, **about: Any) -> Entity:
        from urllib.parse import quote

        kind = _TYPES.get(Path(path).suffix, "application/octet-stream")
        properties = {"encodingFormat": kind, **about}
        if digest:
            properties["sha256"] = digest
        self.files[path] = self.crate.add_file(self.base + quote(path), properties=properties)
        return self.files[path]

    def _file(self, path: str) -> Entity:
        """Return the entity of a file of the results."""
        if path in self.files:
            return self.files[path]
        node = self.run.lock["files"][path]
        about: dict[str, Any] = {"name": path, "contentSize": str(node["size"])}
        if node["of"] == "content":
            about["identifier"] = f"content: {node['hash']}"
        return self._outside(path, digest_of(node), **about)

    def _section(self, stage: str) -> Entity:
        """Describe the settings of a stage, as JSON."""
        text = json.dumps(self.run.section(stage), sort_keys=True, ensure_ascii=False)
        return self.add(f"#section-{stage}", "PropertyValue", name=f"config: {stage}", value=text)

    def _action(self, job: Job, tool: Entity, section: Entity, *, whole: bool) -> Entity:
        table = [] if whole else [self.files["jobs.parquet"]]
        read = [self._file(path) for path in job.inputs] if whole or not job.inputs else table
        read = [*read, *self._given(job)]
        return self.add(
            f"#job-{job.name.replace(' ', '-')}", "CreateAction", name=job.name,
            description=f"{len(job.files)} files from {len(job.inputs)}, by mlcd {job.stage}",
            instrument=tool, object=[*read, section], actionStatus=_DONE,
            result=[self._file(path) for path in job.files] if whole else table,
        )  # fmt: skip

    def _given(self, job: Job) -> list[Entity]:
        """Return the inputs from outside that a job read, as its files say."""
        found = [
            entity
            for entry, entity in self.inputs
            if not job.hashes.isdisjoint([entry["hash"], *entry.get("identities", ())])
        ]
        if found or job.stage != "prepare":
            return found
        return [entity for entry, entity in self.inputs if entry.get("bytes") is not None]

    def _whole(
        self, workflow: Entity, actions: list[Entity], sections: list[Entity], jobs: list[Job],
        tools: dict[str, Entity],
    ) -> None:  # fmt: skip
        """Describe the run of the workflow, and how Snakemake led it."""
        last = [path for path in self.run.lock["files"]
                if path.startswith(("train/encoder.", "train/regions.", "evaluate/summary.",
                                    "export/"))]  # fmt: skip
        about = self.add(
            "#run", "CreateAction", name="The run", instrument=workflow, actionStatus=_DONE,
            description="All jobs of this run",
            object=[*(entity for _, entity in self.inputs), *sections],
            result=[self._file(path) for path in last] or [self.files["audit/lock.json"]],
        )  # fmt: skip
        engine = self.add(
            "#snakemake", "SoftwareApplication", name="Snakemake",
            softwareVersion=self._package("snakemake"), url="https://snakemake.github.io",
        )  # fmt: skip
        controls = [
            self.add(
                f"#control-{stage}", "ControlAction", name=f"jobs of {stage}",
                instrument=self.steps[stage], actionStatus=_DONE,
                object=[action for action, job in zip(actions, jobs, strict=True)
                        if job.stage == stage],
            )
            for stage in tools
        ]  # fmt: skip
        self.add(
            "#orchestration", "OrganizeAction", name="Snakemake", instrument=engine,
            result=about, object=controls, actionStatus=_DONE,
        )  # fmt: skip
        self.crate.root_dataset["mentions"] = [about, *actions]

    def _package(self, name: str) -> str:
        return str(self.run.system.get("packages", {}).get(name, "unknown"))
