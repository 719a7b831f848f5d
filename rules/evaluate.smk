# evaluate: the trained encoder beside raw pixels, random weights and the frozen encoder.
#
# REQUIRED INPUTS  config evaluate.datasets; results/train/encoder.* for trained and random
#                  results/text/text.safetensors where a task needs the text tower
# OUTPUTS          results/evaluate/features/{model}-{dataset}.h5   features, cached once
#                  results/evaluate/texts/{dataset}.h5              captions, embedded
#                  results/evaluate/{model}.json                    scores of a model
#                  results/evaluate/summary.csv, .md, .svg          all models side by side

#: What a run leaves of the stage, each asked for by name in rule all.
SCORES = [
    *expand(
        f"{RESULTS}/evaluate/features/{{model}}-{{dataset}}.h5",
        model=CONFIG.evaluate.models,
        dataset=DATASETS,
    ),
    *expand(f"{RESULTS}/evaluate/{{model}}.json", model=CONFIG.evaluate.models),
    *expand(f"{RESULTS}/evaluate/summary.{{ending}}", ending=["csv", "md", "svg"]),
]


rule evaluate_features:
    """Compute the features of {wildcards.model} on {wildcards.dataset}."""
    input:
        encoder=encoder_files,
        images=images_of,
    output:
        features=f"{RESULTS}/evaluate/features/{{model}}-{{dataset}}.h5",
    log:
        f"{RESULTS}/logs/evaluate/features-{{model}}-{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/features-{{model}}-{{dataset}}.tsv"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=features_minutes,
    params:
        cfg=lambda wildcards: CONFIG.evaluate.for_features_of(wildcards.dataset, wildcards.model),
        code=code_hash("evaluate"),
        source=model_options,
        identity=lambda wildcards: layout.identity(DATASETS[wildcards.dataset]),
    shell:
        """
        mlcd evaluate --part features \
            --model {wildcards.model:q} \
            --dataset {wildcards.dataset:q} \
            {params.source} \
            --output {output.features:q} \
            --threads {threads} \
            --config {params.cfg:q} \
            --log {log:q}
        """


rule evaluate_texts:
    """Embed the captions of {wildcards.dataset} with the text tower."""
    input:
        tower=f"{RESULTS}/text/text.safetensors",
        description=f"{RESULTS}/train/encoder.json",
        images=images_of,
    output:
        texts=f"{RESULTS}/evaluate/texts/{{dataset}}.h5",
    log:
        f"{RESULTS}/logs/evaluate/texts-{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/texts-{{dataset}}.tsv"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=60,
    params:
        cfg=lambda wildcards: CONFIG.evaluate.for_texts(wildcards.dataset),
        code=code_hash("evaluate"),
        identity=lambda wildcards: layout.identity(DATASETS[wildcards.dataset]),
        text=subpath(input.tower, parent=True),
        encoder=subpath(input.description, parent=True),
    shell:
        """
        mlcd evaluate --part texts \
            --dataset {wildcards.dataset:q} \
            --text {params.text:q} \
            --encoder {params.encoder:q} \
            --output {output.texts:q} \
            --threads {threads} \
            --config {params.cfg:q} \
            --log {log:q}
        """


rule evaluate:
    """Score the features of {wildcards.model}: k-NN, linear probe, retrieval, tags, texts."""
    input:
        tower=tower_files,
        texts=texts_files,
        features=expand(
            f"{RESULTS}/evaluate/features/{{{{model}}}}-{{dataset}}.h5", dataset=DATASETS
        ),
    output:
        metrics=f"{RESULTS}/evaluate/{{model}}.json",
    log:
        f"{RESULTS}/logs/evaluate/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/{{model}}.tsv"
    threads: 1
    resources:
        mem_mb=scores_memory,
        runtime=scores_minutes,
    params:
        cfg=CONFIG.evaluate.for_scores(),
        code=code_hash("evaluate"),
        # Prompts and names of classes: the section has only their paths. Not by way of `input`, for
        # Snakemake does not compare such parameters.
        names=lambda wildcards: names_identity() if tower_files(wildcards) else [],
        tower=lambda wildcards, input: (
            f"--text {shlex.quote(f'{RESULTS}/text')} --encoder {shlex.quote(f'{RESULTS}/train')}"
            if input.tower
            else ""
        ),
        texts=lambda wildcards, input: as_options({"texts": input.texts} if input.texts else {}),
    shell:
        """
        mlcd evaluate --part metrics \
            --features {input.features:q} {params.tower} {params.texts} \
            --output {output.metrics:q} \
            --threads {threads} \
            --config {params.cfg:q} \
            --log {log:q}
        """


rule evaluate_summary:
    """Put all models side by side in one table."""
    input:
        metrics=expand(f"{RESULTS}/evaluate/{{model}}.json", model=CONFIG.evaluate.models),
    output:
        table=f"{RESULTS}/evaluate/summary.csv",
        text=f"{RESULTS}/evaluate/summary.md",
        chart=f"{RESULTS}/evaluate/summary.svg",
    log:
        f"{RESULTS}/logs/evaluate/summary.log",
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_hash("evaluate"),
        # Which sets the means are over, and by which measure.
        registry=sha256_json(registry.registry()),
        # The paper's figures that stand beside this run's.
        figures=json.dumps(comparison.figures(CONFIG), ensure_ascii=False),
    shell:
        """
        mlcd evaluate --part summary \
            --metrics {input.metrics:q} \
            --figures {params.figures:q} \
            --output {output.table:q} \
            --log {log:q}
        """
