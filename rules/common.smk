# What all rules share: the checked config, the chunks, and what makes a stage stale.
#
# A stage is stale when its section of the config, its code or its inputs' content differ. Each rule
# carries the first two as params: `cfg` (the section as one line of JSON) and `code` (a hash of the
# modules that the stage imports). Threads, memory, nodes and ranks are resources: they make nothing
# stale. Nothing here imports torch: every Slurm job parses this file again.

import json
import shlex
from pathlib import Path

from snakemake.exceptions import WorkflowError

from mlcd.config import Config, validate
from mlcd.errors import UserError
from mlcd.plan import plan
from mlcd.sources import code_hash, file_identity


def check_config(values):
    """Return the validated config and its chunks, or stop with one line a mistake."""
    try:
        checked = validate(Config, values, "config")
        chunks = plan(checked.metadata, checked.prepare.chunk_rows)
        for dataset in checked.evaluate.datasets:
            if not Path(dataset.path).exists():
                raise UserError(
                    f"config: evaluate.datasets: {dataset.path} does not exist; "
                    "give a path that does, or remove the data set"
                )
        return checked, chunks
    except UserError as error:
        raise WorkflowError(str(error)) from None


CONFIG, CHUNKS = check_config(config)
# Captions of the report read `config`: give them every key, defaults included.
config.update(CONFIG.model_dump(mode="json"))
RESULTS = CONFIG.results.rstrip("/")


wildcard_constraints:
    chunk=r"[^/]+-\d{5}",
    model="[a-z_0-9]+",
    dataset="[A-Za-z0-9_-]+",
    format="[a-z_]+",


def section(stage):
    """Return a stage's section as one line of JSON: what `mlcd STAGE --config` takes."""
    return getattr(CONFIG, stage).to_json()


def of_chunks(pattern):
    """Return the files that `pattern` (with {chunk}) names, one a chunk."""
    return expand(f"{RESULTS}/{pattern}", chunk=CHUNKS)


DATASETS = {dataset.name: dataset for dataset in CONFIG.evaluate.datasets}


def encoder_files(wildcards):
    """Return what the features of a model are computed from, beside the pictures."""
    return {
        "trained": [f"{RESULTS}/train/encoder.safetensors", f"{RESULTS}/train/encoder.json"],
        "random": [f"{RESULTS}/train/encoder.json"],
    }.get(wildcards.model, [])


def features_section(wildcards):
    """Return the keys that features depend on: another probe option leaves them alone."""
    values = json.loads(CONFIG.evaluate.for_features())
    values["datasets"] = [item for item in values["datasets"] if item["name"] == wildcards.dataset]
    return json.dumps(values, sort_keys=True)


def model_options(wildcards):
    """Return the option that says where a model of evaluate.models comes from."""
    if wildcards.model == "frozen":
        return f"--embed-config {shlex.quote(section('embed'))}"
    return f"--encoder {shlex.quote(f'{RESULTS}/train')}" if encoder_files(wildcards) else ""


def as_options(files):
    """Return '--name file file …' for each kind of input of a part."""
    return " ".join(f"--{name} {shlex.join(paths)}" for name, paths in files.items())
