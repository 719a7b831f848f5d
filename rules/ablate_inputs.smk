# What the rules of ablate.smk need to know of a cell: its files and its settings.

from mlcd.config.ablate import CELL_PATTERN, Cell

OWN_CELL = CONFIG.own_cell
ABLATION = CONFIG.ablate.runs(OWN_CELL)
ABLATE = f"{RESULTS}/ablate"
ABLATION_RUNS = [f"{ABLATE}/{cell.name}/seed-{seed}" for cell, seed in ABLATION]


def ablate_centroids(k):
    """Return the centers of K = `k`: the run's own where they are."""
    own = int(k) == CONFIG.cluster.k
    return f"{RESULTS}/clusters/centroids.h5" if own else f"{ABLATE}/clusters-k{k}/centroids.h5"


def ablate_labels(cell, own="labels", kind="labels"):
    """Return the labels of a cell: the run's own if K is, and if they are as many as the cell's l."""
    width = max(cell.l, CONFIG.label.top)
    if (cell.k, width) == (CONFIG.cluster.k, CONFIG.label.top):
        return of_chunks(f"{own}/{{chunk}}.h5")
    return of_chunks(f"ablate/{kind}-k{cell.k}-l{width}/{{chunk}}.h5")


def ablate_region_labels(cell):
    """Return the labels of regions of a cell, found as those of images."""
    return ablate_labels(cell, "regions/labels", "region-labels")


def ablate_train_section(wildcards):
    """Return the section train of a cell and seed."""
    cell, seed = Cell.parse(wildcards.cell), int(wildcards.seed)
    return cell.train(CONFIG.train, seed).for_encoder()


def ablate_description(wildcards):
    """Return a cell's encoder.json: what random weights of the same seed are built from."""
    if wildcards.model != "random":
        return []
    cells = [cell for cell, seed in ABLATION if seed == int(wildcards.seed)]
    cell = OWN_CELL if OWN_CELL in cells else cells[0]
    return f"{ABLATE}/{cell.name}/seed-{wildcards.seed}/train/encoder.json"


def ablate_source(wildcards):
    """Return the option that says where a baseline comes from."""
    if wildcards.model == "frozen":
        return f"--embed-config {shlex.quote(CONFIG.embed.for_encoder())}"
    description = ablate_description(wildcards)
    return f"--encoder {shlex.quote(str(Path(description).parent))}" if description else ""


def ablate_architecture(wildcards):
    """Return what random weights are built by; nothing for baselines without any."""
    return CONFIG.train.for_architecture() if wildcards.model == "random" else ""


def ablate_images():
    """Return the paths of all data sets on disk; their identity tells whether they are others."""
    found = [data for data in DATASETS.values() if layout.kind(data) != "digits"]
    return [ancient(data.path) for data in found]


def ablate_baselines():
    """Return the scores of the baselines: once per seed, the frozen encoder, the most expensive, once."""
    seeds = dict.fromkeys(seed for _, seed in ABLATION)
    return [
        f"{ABLATE}/baselines/{model}-seed-{seed}/{model}.json"
        for model in CONFIG.ablate.baselines
        for seed in ([CONFIG.evaluate.seed] if model == "frozen" else seeds)
    ]
