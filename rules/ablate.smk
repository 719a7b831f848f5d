# ablate: train again with other losses, l, r or K, over seeds, and compare: snakemake ablate
#
# REQUIRED INPUTS  config ablate.grids; images, embeddings, and the run's own clusters and labels
#                  wherever a cell has the same K and no more labels per image
# OUTPUTS          results/ablate/{cell}/seed-{seed}/train/   as rule train; cell is LOSS-lL-rR-kK
#                  results/ablate/{cell}/seed-{seed}/evaluate/trained.json  scores, as rule evaluate
#                  results/ablate/baselines/{model}-seed-{seed}/{model}.json
#                  results/ablate/clusters-k{k}, labels-k{k}-l{l}       for another K, or a larger l
#                  results/ablate/table.csv, table.md           means, 95 % intervals, differences
#                  results/ablate/orders.csv                    which orders hold, beside the paper's
#                  results/ablate/plot.svg, results/report/ablate.html  by rules/report.smk
#
# A new seed or value adds its own runs and redoes the table. Ranks, launcher and memory are those of
# the rules cluster, label and train, until a profile sets others (profiles/local trains two cells of
# one rank side by side).


wildcard_constraints:
    cell=CELL_PATTERN,
    seed=r"\d+",
    k=r"\d+",
    l=r"\d+",


#: The region layer of a cell, where one is trained.
ABLATED_REGION_LAYER = (
    [f"{ABLATE}/{{cell}}/seed-{{seed}}/train/regions.safetensors"] if CONFIG.train.regions else []
)


# Given centers are of one K, and own labels of one K and l.
if CONFIG.cluster.centers is None:

    use rule cluster as ablate_cluster with:
        output:
            centroids=f"{ABLATE}/clusters-k{{k}}/centroids.h5",
            iterations=f"{ABLATE}/clusters-k{{k}}/iterations.jsonl",
        log:
            f"{RESULTS}/logs/ablate/clusters-k{{k}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/ablate/clusters-k{{k}}.tsv"
        params:
            cfg=lambda wildcards: CONFIG.cluster.changed(k=int(wildcards.k)).for_centroids(),


if not OWN_LABELS:

    use rule label as ablate_label with:
        input:
            embeddings=f"{RESULTS}/{EMBEDDINGS}",
            centroids=lambda wildcards: ablate_centroids(wildcards.k),
        output:
            labels=f"{ABLATE}/labels-k{{k}}-l{{l}}/{{chunk}}.h5",
        log:
            f"{RESULTS}/logs/ablate/labels-k{{k}}-l{{l}}/{{chunk}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/ablate/labels-k{{k}}-l{{l}}/{{chunk}}.tsv"
        params:
            cfg=lambda wildcards: CONFIG.label.changed(top=int(wildcards.l)).for_labels(),


if TRAIN_REGIONS:

    use rule ablate_label as ablate_regions_label with:
        input:
            embeddings=f"{RESULTS}/regions/{{chunk}}.h5",
            centroids=lambda wildcards: ablate_centroids(wildcards.k),
        output:
            labels=f"{ABLATE}/region-labels-k{{k}}-l{{l}}/{{chunk}}.h5",
        log:
            f"{RESULTS}/logs/ablate/labels-k{{k}}-l{{l}}/regions-{{chunk}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/ablate/labels-k{{k}}-l{{l}}/regions-{{chunk}}.tsv"


use rule train as ablate_train with:
    input:
        labels=lambda wildcards: ablate_labels(Cell.parse(wildcards.cell)),
        embeddings=[] if OWN_LABELS else of_chunks(EMBEDDINGS),
        images=of_chunks("images/{chunk}/manifest.json"),
        centroids=lambda wildcards: (
            ablate_centroids(Cell.parse(wildcards.cell).k) if CENTROIDS else []
        ),
        region_embeddings=TRAIN_REGIONS,
        region_labels=lambda wildcards: (
            ablate_region_labels(Cell.parse(wildcards.cell)) if TRAIN_REGIONS else []
        ),
        ocr_labels=OCR_LABELS,
    output:
        weights=f"{ABLATE}/{{cell}}/seed-{{seed}}/train/encoder.safetensors",
        description=f"{ABLATE}/{{cell}}/seed-{{seed}}/train/encoder.json",
        metrics=f"{ABLATE}/{{cell}}/seed-{{seed}}/train/metrics.jsonl",
        regions=ABLATED_REGION_LAYER,
    log:
        f"{RESULTS}/logs/ablate/{{cell}}/seed-{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/ablate/{{cell}}/seed-{{seed}}.tsv"
    params:
        cfg=ablate_train_section,


rule ablate_evaluate:
    """Score the encoder of {wildcards.cell}, seed {wildcards.seed}."""
    input:
        weights=f"{ABLATE}/{{cell}}/seed-{{seed}}/train/encoder.safetensors",
        description=f"{ABLATE}/{{cell}}/seed-{{seed}}/train/encoder.json",
        regions=ABLATED_REGION_LAYER,
        images=ablate_images(),
    output:
        metrics=f"{ABLATE}/{{cell}}/seed-{{seed}}/evaluate/trained.json",
        features=temp(
            expand(
                f"{ABLATE}/{{{{cell}}}}/seed-{{{{seed}}}}/evaluate/features/trained-{{dataset}}.h5",
                dataset=FEATURE_SETS,
            )
        ),
    log:
        f"{RESULTS}/logs/ablate/{{cell}}/seed-{{seed}}-evaluate.log",
    benchmark:
        f"{RESULTS}/benchmarks/ablate/{{cell}}/seed-{{seed}}-evaluate.tsv"
    # Before the next training: each score is there, and its features gone, as soon as can be.
    priority: 1
    threads: 1
    resources:
        mem_mb=scores_memory,
        runtime=cell_minutes,
    params:
        cfg=lambda wildcards: CONFIG.evaluate.changed(
            models=["trained"], seed=int(wildcards.seed)
        ).to_json(),
        code=code_hash("evaluate"),
        identity=[layout.identity(dataset) for dataset in DATASETS.values()],
        encoder=subpath(input.weights, parent=True),
        folder=subpath(output.metrics, parent=True),
    shell:
        """
        mlcd evaluate \
            --encoder {params.encoder:q} \
            --output {params.folder:q} \
            --threads {threads} \
            --config {params.cfg:q} \
            --log {log:q}
        """


rule ablate_baseline:
    """Score {wildcards.model}, which is not trained, with seed {wildcards.seed}."""
    input:
        # ancient: of the description only the architecture counts, which is a parameter.
        description=lambda wildcards: ancient(ablate_description(wildcards)),
        images=ablate_images(),
    output:
        metrics=f"{ABLATE}/baselines/{{model}}-seed-{{seed}}/{{model}}.json",
        features=temp(
            expand(
                f"{ABLATE}/baselines/{{{{model}}}}-seed-{{{{seed}}}}/features/{{{{model}}}}-{{dataset}}.h5",
                dataset=FEATURE_SETS,
            )
        ),
    log:
        f"{RESULTS}/logs/ablate/{{model}}-seed-{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/ablate/{{model}}-seed-{{seed}}.tsv"
    threads: 1
    resources:
        mem_mb=scores_memory,
        runtime=cell_minutes,
    params:
        cfg=lambda wildcards: CONFIG.evaluate.changed(
            models=[wildcards.model], seed=int(wildcards.seed)
        ).to_json(),
        source=ablate_source,
        architecture=ablate_architecture,
        code=code_hash("evaluate"),
        identity=[layout.identity(dataset) for dataset in DATASETS.values()],
        folder=subpath(output.metrics, parent=True),
    shell:
        """
        mlcd evaluate \
            {params.source} \
            --output {params.folder:q} \
            --threads {threads} \
            --config {params.cfg:q} \
            --log {log:q}
        """


rule ablate_table:
    """Compare the cells over their seeds."""
    input:
        encoders=[f"{run}/train/encoder.json" for run in ABLATION_RUNS],
        scores=[f"{run}/evaluate/trained.json" for run in ABLATION_RUNS],
        baselines=ablate_baselines(),
    output:
        table=f"{ABLATE}/table.csv",
        text=f"{ABLATE}/table.md",
        orders=f"{ABLATE}/orders.csv",
    log:
        f"{RESULTS}/logs/ablate/table.log",
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        runs=ABLATION_RUNS,
        baselines=lambda wildcards, input: (
            f"--baseline-scores {shlex.join(input.baselines)}" if input.baselines else ""
        ),
        reference=f"--reference {OWN_CELL.name}" if OWN_CELL in dict(ABLATION) else "",
        code=code_hash("ablate"),
    shell:
        """
        mlcd ablate \
            --runs {params.runs:q} {params.baselines} {params.reference} \
            --output {output.table:q} \
            --log {log:q}
        """
