# What all rules share: the checked config, the chunks, and what makes a stage stale.
#
# A stage is stale when its section of the config, its code or its inputs' content differ. Each rule
# carries the first two as params: `cfg` (the section as one line of JSON) and `code` (a hash of the
# modules that the stage imports). Threads, memory, nodes and ranks are resources: they make nothing
# stale. Nothing here imports torch: every Slurm job parses this file again.

import functools
import json
import math
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from mlcd import datasets, head, prompts
from mlcd.config import Config, published, registry, validate
from mlcd.errors import UserError
from mlcd.files import sha256_json
from mlcd.plan import plan
from mlcd.sources import code_hash
from mlcd.sources import file_identity as read_identity

# The programs of the environment that runs Snakemake, whether or not it is activated.
shell.prefix(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")

# Snakemake's lock says neither whose it is nor whether that process still lives.
if workflow.is_main_process and (stale := head.stale_lock(Path.cwd())):
    logger.warning(stale)


def check_config(values):
    """Return the validated config and its chunks, or stop with one line a mistake."""
    source = str(workflow.configfiles[-1]) if workflow.configfiles else "config"
    try:
        checked = validate(Config, values, source)
        prepare = checked.prepare
        columns = {
            key: getattr(prepare, key) for key in type(prepare).model_fields if "column" in key
        }
        chunks = plan(checked.metadata, prepare.chunk_rows, columns)
        for dataset in checked.evaluate.datasets:
            datasets.check(dataset)
        prompts.check(checked.evaluate)
        weights = checked.embed.pretrained
        if weights and "/" in weights and not Path(weights).is_file():
            raise UserError(f"{source}: embed.pretrained: {weights} is no file; fetch it first")
        centres = checked.cluster.initial
        if centres and not Path(centres).is_file():
            raise UserError(f"{source}: cluster.initial: {centres} is no file; give an HDF5 file")
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


# Asked once a job, of few files: a list of URLs has many chunks.
file_identity = functools.cache(read_identity)


def files_beside_inputs():
    """Return path → identity of what rules depend on beside their inputs, code and sections."""
    rules = Path(workflow.basedir).parent.glob("rules/*.smk")
    lists = {planned.list for planned in CHUNKS.values()}
    centres = [CONFIG.cluster.initial] if CONFIG.cluster.initial else []
    names = prompts.check(CONFIG.evaluate)
    return {path: file_identity(path) for path in [*map(str, rules), *lists, *centres, *names]}


def check_command_length():
    """Stop before any work if the longest command, which names files of all chunks, is too long."""
    paths = [
        path
        for pattern in (
            "labels/{chunk}.h5",
            "embeddings/{chunk}.h5",
            "images/{chunk}/manifest.json",
        )
        for path in of_chunks(pattern)
    ]
    # Linux takes 128 KiB as one argument, which the whole command is to bash; 8 KiB for the rest.
    if (length := len(shlex.join(paths))) > 120 * 1024:
        raise WorkflowError(
            f"prepare.chunk_rows: {len(CHUNKS)} chunks with paths as long as {max(paths, key=len)} "
            f"make commands of {length} bytes, and Linux takes 120 KiB; raise it, or give a "
            "shorter path as results (a symbolic link)"
        )


def section(stage):
    """Return a stage's section as one line of JSON: what `mlcd STAGE --config` takes."""
    return getattr(CONFIG, stage).to_json()


def of_chunks(pattern):
    """Return the files that `pattern` (with {chunk}) names, one a chunk."""
    return expand(f"{RESULTS}/{pattern}", chunk=CHUNKS)


onstart:
    head.announce(Path.cwd(), CONFIG.model_dump(mode="json"), files_beside_inputs())


check_command_length()
DATASETS = {dataset.name: dataset for dataset in CONFIG.evaluate.datasets}


def names_identity():
    """Return the identities of the prompts and names of classes that zero-shot scores rest on."""
    return [file_identity(path) for path in prompts.check(CONFIG.evaluate)]


def pictures_of(wildcards):
    """Return the path of a data set, if it lies on disk, as an input."""
    dataset = DATASETS[wildcards.dataset]
    # ancient: a copied data set has a new time; its identity tells whether it is another.
    return [] if datasets.kind(dataset) == "digits" else [ancient(dataset.path)]


def encoder_files(wildcards):
    """Return what the features of a model are computed from, beside the pictures."""
    return {
        "trained": [f"{RESULTS}/train/encoder.safetensors", f"{RESULTS}/train/encoder.json"],
        "random": [f"{RESULTS}/train/encoder.json"],
    }.get(wildcards.model, [])


def tower_files(wildcards):
    """Return the text tower and its encoder where the scores of a model rest on them."""
    asked = any("zero_shot" in dataset.tasks for dataset in DATASETS.values())
    if wildcards.model != "trained" or not asked:
        return []
    return [f"{RESULTS}/text/text.safetensors", f"{RESULTS}/train/encoder.json"]


def texts_files(wildcards):
    """Return the embedded captions that the scores of a model rest on."""
    asked = [name for name, dataset in DATASETS.items() if "image_text_retrieval" in dataset.tasks]
    if wildcards.model != "trained":
        return []
    return expand(f"{RESULTS}/evaluate/texts/{{dataset}}.h5", dataset=asked)


def features_section(wildcards):
    """Return the keys that features depend on: another probe option leaves them alone."""
    values = json.loads(CONFIG.evaluate.for_features())
    values["datasets"] = [item for item in values["datasets"] if item["name"] == wildcards.dataset]
    if wildcards.model != "pixels":
        del values["pixel_side"]
    return json.dumps(values, sort_keys=True)


def embed_section():
    """Return the keys of embed that decide features: how many failures are borne is none of them."""
    return json.dumps(CONFIG.embed.model_dump(mode="json", exclude={"max_failed"}), sort_keys=True)


def text_embed_section():
    """Return the keys of embed that count where the trained encoder embeds, images alone."""
    values = CONFIG.embed.model_dump(include={"batch_size", "precision", "max_pixels"})
    return json.dumps({**values, "features": "image"}, sort_keys=True)


def cluster_section(**changes):
    """Return the keys of cluster, some changed, save where its initial centres lie."""
    values = CONFIG.cluster.model_dump(mode="json", exclude={"initial"}) | changes
    return json.dumps(values, sort_keys=True)


def label_section(**changes):
    """Return the keys of label that decide labels, some changed: least agreement is none of them."""
    return CONFIG.label.model_copy(update=changes).for_labels()


def download_patience():
    """Return the keys of download that decide how long is tried, as options."""
    keys = ("timeout", "transfer_timeout", "deadline", "passes", "backoff", "min_success")
    return " ".join(f"--{key.replace('_', '-')} {getattr(CONFIG.download, key)}" for key in keys)


def model_options(wildcards):
    """Return the option that says where a model of evaluate.models comes from."""
    if wildcards.model == "frozen":
        return f"--embed-config {shlex.quote(embed_section())}"
    return f"--encoder {shlex.quote(f'{RESULTS}/train')}" if encoder_files(wildcards) else ""


def as_options(files):
    """Return '--name file file …' for each kind of input of a part."""
    return " ".join(f"--{name} {shlex.join(paths)}" for name, paths in files.items())
