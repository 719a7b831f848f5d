"""checklist.md: the NeurIPS paper checklist and ACM's artifact badges, from the run's own files.

A run knows its data, settings and machine, and nothing of a paper: what it does not hold is "not
recorded", and an author answers it. Names and settings are shown as code, in which no mark counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlcd.commands.audit.bundle.run import Run
from mlcd.utils.ownership import MARKDOWN_MARK
from mlcd.utils.records import read_csv
from mlcd.utils.templates import code

NAME = "checklist"
FILE = "checklist.md"
_NOT = "not recorded"
#: Keys of the section train that a reader asks for first.
_TRAIN = (
    "model", "embedding_dim", "image_size", "loss", "positives", "negative_ratio", "epochs",
    "batch_size", "lr", "classifier_lr", "weight_decay", "warmup_steps", "schedule", "precision",
    "seed",
)  # fmt: skip
#: Settings of a download that keep images out, and whom it asks.
_SAFEGUARDS = ("respect_opt_out", "private_addresses", "min_image_size", "user_agent_token")


def write(run: Run, folder: Path) -> list[Path]:
    """Write the two lists, a row per question."""
    lines = [
        "# Checklists",
        "",
        f"Answered from the files of run {code(run.lock['root'])}, and from nothing else. "
        f'"{_NOT}" says that a run does not hold the answer: its author has it.',
        "",
        "## NeurIPS paper checklist",
        "",
        *_table(("question", "answer of the run"), _neurips(run)),
        "",
        "## ACM artifact badges",
        "",
        *_table(("badge", "what the run holds for it"), _acm(run)),
        "",
        MARKDOWN_MARK,
    ]
    path = folder / FILE
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    return [path]


def _neurips(run: Run) -> list[tuple[str, str]]:
    return [
        ("1. Claims", _NOT),
        ("2. Limitations", _NOT),
        ("3. Theory: assumptions and proofs", _NOT),
        ("4. Reproducibility of the results", _reproducibility(run)),
        ("5. Open access to data and code", _access(run)),
        ("6. Experimental setting and details", _setting(run)),
        ("7. Statistical significance", _significance(run)),
        ("8. Compute resources", _compute(run)),
        ("9. Code of ethics", _NOT),
        ("10. Broader impacts", _NOT),
        ("11. Safeguards", _safeguards(run)),
        ("12. Licenses for existing assets", _existing(run)),
        ("13. New assets", _new(run)),
        ("14. Crowdsourcing and human subjects", _NOT),
        ("15. Approval by a review board", _NOT),
        ("16. Use of language models", _NOT),
    ]


def _acm(run: Run) -> list[tuple[str, str]]:
    verify, replay, diff = (
        code(f"mlcd audit {words}") for words in ("verify RESULTS --numbers", "replay", "diff")
    )
    return [
        ("Artifacts available", f"an archive and its DOI: {_NOT}"),
        ("Artifacts evaluated: functional",
         f"{len(run.lock['files']):,} files by hash; {verify} computes samples of labels, scores "
         "and exports again"),
        ("Artifacts evaluated: reusable", _exports(run)),
        ("Results reproduced",
         f"{_NOT}: another group's {replay}, or its run and {diff}, shows it"),
        ("Results replicated", f"{_NOT}: it takes artifacts of another group's own"),
    ]  # fmt: skip


def _reproducibility(run: Run) -> str:
    stages = run.lock["stages"]
    seeds = {
        stage: about["section"]["seed"]
        for stage, about in stages.items()
        if "seed" in (about.get("section") or {})
    }
    told = f"identity {code(run.lock['root'])}; settings and code of {len(stages)} stages by hash"
    return f"{told}; seeds: {_pairs(seeds) if seeds else _NOT}"


def _access(run: Run) -> str:
    revision = run.system.get("revision") or {}
    source = code(revision["commit"]) if revision.get("commit") else _NOT
    if revision.get("modified"):
        source += " with changes (audit/source.diff)"
    lists = ", ".join(code(entry["name"]) for entry in run.files_from_outside()) or _NOT
    tars = len(run.files("images/*/*.tar"))
    return (
        f"code: revision {source}; inputs, by SHA-256: {lists}; {tars:,} tars of images, by "
        f"SHA-256; where data and code are published: {_NOT}"
    )


def _setting(run: Run) -> str:
    train = run.section("train")
    told = _pairs({key: train[key] for key in _TRAIN if key in train}) if train else _NOT
    names = [one.get("name") for one in run.section("evaluate").get("datasets", [])]
    sets = ", ".join(map(code, names)) or _NOT
    return f"training: {told}; evaluated on: {sets}; all settings: audit/lock.json"


def _significance(run: Run) -> str:
    path = run.results / "evaluate" / "summary.csv"
    if not path.is_file():
        return _NOT
    seeds = sorted({row.get("seed", "") for row in read_csv(path, "evaluate")})
    told = f"scores of one training, with seed {', '.join(map(code, seeds))}"
    return f"{told}; intervals over seeds: {_NOT} (an ablation has them)"


def _compute(run: Run) -> str:
    gpus = [" ".join(map(str, one.values())) for one in run.system.get("gpus") or []]
    processor = run.system.get("processor") or {}
    ranks = run.lock["stages"].get("train", {}).get("how", {}).get("ranks")
    return (
        f"where it was sealed: {', '.join(map(code, gpus)) or 'no GPU'}, "
        f"{code(processor.get('model') or _NOT)}, {processor.get('cores', _NOT)} cores; training "
        f"on {ranks or _NOT} ranks; times: times.json and report/efficiency.csv; "
        f"compute of runs that failed or were left out: {_NOT}"
    )


def _safeguards(run: Run) -> str:
    download = run.section("download")
    kept = {key: download[key] for key in _SAFEGUARDS if key in download}
    return f"download: {_pairs(kept) if kept else _NOT}; for the release of the model: {_NOT}"


def _existing(run: Run) -> str:
    embed, first = run.section("embed"), run.record("train/encoder.json") or {}
    frozen = _pairs({key: embed[key] for key in ("model", "pretrained") if embed.get(key)})
    told = f"frozen encoder: {frozen or _NOT}"
    if source := first.get("initial", {}).get("source"):
        told += f"; first weights: {code(source)}"
    return f"{told}; their licenses, and the terms of the images: {_NOT}"


def _new(run: Run) -> str:
    license = run.section("export").get("license")
    return f"{_exports(run)}; license of the weights: {code(license) if license else _NOT}"


def _exports(run: Run) -> str:
    checks = run.files("export/*/check.json")
    formats = ", ".join(code(Path(path).parent.name) for path in checks)
    cards = len(run.files("export/*/README.md"))
    if not formats:
        return _NOT
    return f"exports for {formats}, each compared with the encoder; {cards} with a model card"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {code(_plain(value))}" for key, value in values.items())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _table(header: Sequence[str], rows: list[tuple[str, str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows)]
