# What all rules share: the checked config, the chunks, and what makes a stage stale.
#
# A stage is stale when its section of the config, its code or its inputs' content differ. Each rule
# carries the first two as params: `cfg` (the section as one line of JSON) and `code` (a hash of the
# modules that the stage imports). Threads, memory, nodes and ranks are resources: they make nothing
# stale. Nothing here imports torch: every Slurm job parses this file again.

import functools
import json
import math
import os
import re
import shlex
from pathlib import Path

from snakemake.io import IOFile
from snakemake.logging import logger

from mlcd.data import at_start, columns, initial_files, list_counts, undeclared
from mlcd.data.labeled import layout, prompts
from mlcd.data.own import checks as own_checks
from mlcd.data.own import rows as own_rows
from mlcd.data.own.base import EMBEDDING, LABEL
from mlcd.launch import snakemake as snakemake_process
from mlcd.config import SECTIONS, Config, comparison, registry, validate
from mlcd.config import files as config_files
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json
from mlcd.data.sources import plan
from mlcd.utils.logging import setup_logging
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.fingerprint import file_identity as read_identity

# The programs of the environment that runs Snakemake, whether or not it is activated. No rule names
# a conda environment or container of its own: .snakemake-workflow-catalog.yml says why.
snakemake_process.put_own_programs_first()

# Snakemake's lock says neither whose it is nor whether that process still lives.
if workflow.is_main_process and (stale := snakemake_process.stale_lock(Path.cwd())):
    logger.warning(stale)


def check_config(values):
    """Return the validated config and its chunks, or stop with one line per mistake."""
    settings = workflow.config_settings
    try:
        origins = config_files.Origins.of_snakemake(
            workflow.configfiles, settings.configfiles, settings.config
        )
        checked = validate(Config, values, origins)
        prepare = checked.prepare
        if workflow.is_main_process:
            setup_logging(name="metadata")
        # Counting a list with quotes takes seconds per million rows, and each job reads this file.
        list_counts.recall(Path(checked.results, "state", "lists.json"))
        # Jobs take the listing of local images that the main process has compared with the disk.
        listings = Path(checked.results, "listings")
        look = workflow.is_main_process
        chunks = lambda: plan(checked.metadata, prepare, listings, look=look)
        return checked, at_start.check(checked, origins, chunks, look=look)
    except UserError as error:
        snakemake_process.stop(str(error))


CONFIG, CHUNKS = check_config(config)
# Captions of the report read `config`: give them every key, defaults included.
config.update(CONFIG.model_dump(mode="json"))
RESULTS = CONFIG.results.rstrip("/")
INITIAL = initial_files.files(CONFIG.train.initial, CONFIG.train.model)
if workflow.is_main_process:
    snakemake_process.check_results(RESULTS)
#: Chunk → its part of people's own embeddings or labels; empty where the run makes them.
OWN_EMBEDDINGS = own_checks.embedding_shares(CONFIG, CHUNKS)
OWN_LABELS = own_checks.label_shares(CONFIG, CHUNKS)
#: All files of these.
OWN_FILES = own_rows.files_of({*OWN_EMBEDDINGS.values(), *OWN_LABELS.values()})
#: The run keeps the centers that it has found before: they are then a file like a list.
KEEPS_CENTERS = own_checks.kept_centers(CONFIG)
#: The embeddings that later stages read, below the results: where a run is curated, the kept ones.
EMBEDDINGS = "curate/embeddings/{chunk}.h5" if CONFIG.curate.enabled else "embeddings/{chunk}.h5"
#: The same of the trained encoder's, which the text tower is trained on.
TEXT_EMBEDDINGS = f"text/{'curated' if CONFIG.curate.enabled else 'embeddings'}/{{chunk}}.h5"
#: Tables with the columns of curate.where; without any, the lists of metadata have them.
CURATE_TABLES = columns.tables(CONFIG.curate.columns or []) if CONFIG.curate.enabled else []
#: The same of regions.column.
BOX_TABLES = columns.box_tables(CONFIG.regions.tables or [])
#: The option that joins own rows and tables by keys of webdataset tars, which are unique in one set
#: of tars only.
TAR_KEYS = "--tar-keys" if len({name.rpartition("-")[0] for name in CHUNKS}) == 1 else ""
#: The region layer, where one is trained.
REGION_LAYER = [f"{RESULTS}/train/regions.safetensors"] if CONFIG.train.regions else []
#: The centers, a list of one file, or of none where own labels come without.
CENTROIDS = [f"{RESULTS}/clusters/centroids.h5"] if CONFIG.cluster.centers or not OWN_LABELS else []


wildcard_constraints:
    chunk=r"[^/]+-\d{5}",
    model="[a-z_0-9]+",
    dataset="[A-Za-z0-9_-]+",
    format="[a-z_]+",


# Asked once per job, of few files: a list of URLs has many chunks.
file_identity = functools.cache(read_identity)


@functools.cache
def hashes_seen():
    """Return the hashes of files that were compared at an earlier planning."""
    return undeclared.Seen(Path(".snakemake") / "mlcd-hashes.json")


@functools.cache
def makings(record):
    """Return a parameter that changes when a file that `record` names is not as it was written.

    Snakemake runs a job again when a parameter is not the recorded one, and then records the new
    one. So this counts: one more than recorded when something is wrong, else what is recorded.
    """
    if not workflow.is_main_process:
        return ""
    recorded = workflow.persistence.params(IOFile(record)) or []
    counts = [re.fullmatch(r"'making (\d+)'", param) for param in recorded]
    count = max((int(found[1]) for found in counts if found), default=1)
    if problem := undeclared.changed(record, hashes_seen()):
        logger.warning(f"{problem}; made again")
        count += 1
    return f"making {count}"


def files_from_outside():
    """Return the files that no stage makes and results rest on: lists, centers, own rows, names."""
    lists = {planned.list for planned in CHUNKS.values()}
    centers = filter(None, [CONFIG.cluster.initial, CONFIG.cluster.centers])
    names = prompts.check(CONFIG.evaluate)
    tables = [*CURATE_TABLES, *BOX_TABLES]
    return [*sorted(lists), *centers, *map(str, INITIAL), *names, *OWN_FILES, *tables]


def files_beside_inputs():
    """Return path → identity of what rules depend on beside their inputs, code and sections."""
    # Those of a repository elsewhere (snakedeploy) have a URL, with the tag or commit in it.
    sources = (source.get_path_or_uri(secret_free=True) for source in workflow.included)
    rules = filter(os.path.isfile, sources)
    return {path: file_identity(path) for path in [*map(str, rules), *files_from_outside()]}


def check_command_length():
    """Stop before any work if the longest command, which names files of all chunks, is too long."""
    # Snakemake hands a shell command of more than 64 KiB to the shell as a file, so that Linux
    # limits all arguments of a program only: a quarter of the stack, 2 MiB of the usual 8. A
    # quarter of these is left for the environment and the other options; each word has a pointer.
    limit = min(os.sysconf("SC_ARG_MAX"), 2 << 20) * 3 // 4
    length = lambda words: sum(len(os.fsencode(word)) + 9 for word in words)
    patterns = ["labels/{chunk}.h5", EMBEDDINGS, "images/{chunk}/manifest.json"]
    if CONFIG.regions.source:
        patterns += ["regions/{chunk}.h5", "regions/labels/{chunk}.h5"]
    if CONFIG.train.ocr_weight:
        patterns += ["ocr/labels/{chunk}.h5"]
    paths = [path for pattern in patterns for path in of_chunks(pattern)]
    if (own := length(map(str, OWN_FILES))) > limit:
        snakemake_process.stop(
            f"embed.embeddings, label.labels: the paths of {len(OWN_FILES)} files have {own} "
            f"bytes, and a command takes {limit} here; give fewer or larger files, or a shorter "
            "path (a symbolic link)"
        )
    if (needed := length(paths)) > limit:
        snakemake_process.stop(
            f"prepare.chunk_rows: {len(CHUNKS)} chunks with paths as long as {max(paths, key=len)} "
            f"make commands of {needed} bytes, and Linux takes {limit} here (ulimit -s); raise it, "
            "or give a shorter path as results (a symbolic link)"
        )


def section(stage):
    """Return a stage's section as one line of JSON: what `mlcd STAGE --config` takes."""
    return getattr(CONFIG, stage).to_json()


def of_chunks(pattern):
    """Return the files that `pattern` (with {chunk}) names, one per chunk."""
    return expand(f"{RESULTS}/{pattern}", chunk=CHUNKS)


@functools.cache
def initial_identity():
    """Return what the encoder's first weights are: a tag, or the hashes of their files.

    No input, since Snakemake compares the names of inputs too: the same weights may lie elsewhere.
    """
    if not INITIAL or not workflow.is_main_process:
        return CONFIG.train.initial if not INITIAL else ""
    seen = hashes_seen()
    found = [seen.sha256(path, path.stat()) for path in INITIAL]
    seen.keep()
    return found


def check_initial():
    """Stop before any work if the encoder cannot be built or begun as the config says.

    It takes seconds, since the libraries are imported: asked where the config names more than a
    plain encoder, when a run starts that has not trained yet. A tag is fetched here, since compute
    nodes may have no network.
    """
    if not CONFIG.train.is_plain() and not Path(f"{RESULTS}/train/encoder.safetensors").exists():
        snakemake_process.check_train(CONFIG.train)


def warn_of_little_room():
    """Say before a first run if the disk seems too small: later some of it has been used."""
    if not Path(f"{RESULTS}/images").exists():
        # Not at the top: every job reads this file.
        from mlcd.commands.doctor.here import disk_room

        room = disk_room(CONFIG, CHUNKS.values())
        if room.fix:
            logger.warning(f"{room.seen}; {room.fix}")


def sealed_stages():
    """Return section and code of all stages, as `mlcd audit seal` takes them."""
    sections = {stage: getattr(CONFIG, stage).sealed() for stage in SECTIONS}
    stages = {
        stage: {"section": section, "code": code_hash(stage)}
        for stage, section in sections.items()
        if section is not None
    }
    return json.dumps(stages, sort_keys=True)


def rule_graph(rule):
    """Return as JSON the rules that `rule` waits for, and theirs: rule → rules before it."""
    before = {}
    # It is there once Snakemake has found the jobs; then this is asked again, before the job runs.
    if workflow.is_main_process and workflow.dag is not None:
        for job in workflow.dag.jobs:
            needed = {other.rule.name for other in workflow.dag.dependencies[job]}
            before.setdefault(job.rule.name, set()).update(needed)
    found, waiting = {}, [rule]
    while waiting:
        name = waiting.pop()
        if name in before and name not in found:
            found[name] = sorted(before[name])
            waiting += found[name]
    return json.dumps(found, sort_keys=True)


def identity_of_run():
    """Return the identity of the run that is sealed, for the report's first page; '' if none is."""
    try:
        # It comes first: the lock of many tars has megabytes.
        with Path(RESULTS, "audit", "lock.json").open(encoding="utf-8") as lock:
            found = re.search(r'"root": "([0-9a-f]{64})"', lock.read(200))
    except (OSError, ValueError):
        return ""
    return found[1] if found else ""


def sealed_identity():
    """Return the identity of the run; '' if its seal is missing, or older than any of its files."""
    try:
        sealed = os.stat(f"{RESULTS}/audit/lock.json").st_mtime
        is_whole = all(os.stat(path).st_mtime <= sealed for path in RUN_FILES)
    except OSError:
        return ""
    return identity_of_run() if is_whole else ""


if workflow.is_main_process:
    # Not at the top: every job reads this file.
    from mlcd.stages.report import viewer

    # Read by workflow/report/workflow.rst, which Snakemake renders after the run.
    config["run_identity"] = identity_of_run()
    config["run_overview"] = viewer.first_page(
        Path(RESULTS, "report", "overview.html"), config["run_identity"]
    )


onstart:
    snakemake_process.require_results(RESULTS)
    warn_of_little_room()
    check_initial()
    snakemake_process.check_reader(job.rule.name for job in workflow.dag.needrun_jobs())
    list_counts.keep(Path(RESULTS, "state", "lists.json"))
    snakemake_process.announce(
        Path.cwd(), CONFIG.model_dump(mode="json"), files_beside_inputs()
    )


onsuccess:
    # The last word of a run: its jobs may have printed a thousand lines since.
    if found := sealed_identity():
        logger.info(f"identity of this run: {found} (mlcd audit verify {shlex.quote(RESULTS)})")


check_command_length()
DATASETS = {dataset.name: dataset for dataset in CONFIG.evaluate.datasets}


def names_identity():
    """Return the identities of the prompts and names of classes that zero-shot scores rest on."""
    return [file_identity(path) for path in prompts.check(CONFIG.evaluate)]


#: Data sets whose images have cached features: a task looks at them.
FEATURE_SETS = [name for name, dataset in DATASETS.items() if dataset.asks_features]


def own_parts(model):
    """Return the results of tasks that have parts of their own, for a model, on all data sets."""
    parts = CONFIG.evaluate.parts_of(model)
    return [f"{RESULTS}/evaluate/{part}/{model}-{dataset}.json" for part, dataset in parts]


def images_of(wildcards):
    """Return the path of a data set, if it lies on disk, as an input."""
    dataset = DATASETS[wildcards.dataset]
    # ancient: a copied data set has a new time; its identity tells whether it is another.
    return [] if layout.kind(dataset) == "digits" else [ancient(dataset.path)]


def encoder_files(wildcards):
    """Return what the features of a model are computed from, beside the images."""
    return {
        "trained": ENCODER_FILES,
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


def model_options(wildcards):
    """Return the option that says where a model of evaluate.models comes from."""
    if wildcards.model == "frozen":
        return f"--embed-config {shlex.quote(CONFIG.embed.for_features())}"
    return f"--encoder {shlex.quote(f'{RESULTS}/train')}" if encoder_files(wildcards) else ""


def as_options(values):
    """Return '--name value' for each name, a list being '--name value value …'."""
    words = []
    for name, value in values.items():
        listed = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, listed)]
    return shlex.join(words)


def options_of(given, *names):
    """Return '--name path …' of those inputs of a rule that have files."""
    return as_options({name: given.get(name) for name in names if given.get(name)})


def own_options(shares):
    """Return a function: wildcards → the options that say which own rows are a chunk's."""

    def options(wildcards):
        share = shares[wildcards.chunk]
        if share.stop:
            return f"--own-rows {share.start}:{share.stop}"
        urls = f"--urls {shlex.quote(f'{RESULTS}/urls/{wildcards.chunk}.parquet')}"
        return f"{urls} {TAR_KEYS}".rstrip()

    return options


def own_files(shares):
    """Return a function: wildcards → the files of a chunk's own rows, as inputs."""
    # ancient: a copy has a new time; the identity tells whether it is another.
    return lambda wildcards: [ancient(path) for path in shares[wildcards.chunk].files]


def own_keys(shares):
    """Return a function: wildcards → the files that say what own rows are of, and the chunk's."""

    def keys(wildcards):
        share = shares[wildcards.chunk]
        urls = [] if share.stop else [f"{RESULTS}/urls/{wildcards.chunk}.parquet"]
        return [*(ancient(path) for path in share.keys), *urls]

    return keys
