# evaluate: the trained encoder beside raw pixels, random weights and the frozen encoder.
#
# REQUIRED INPUTS  config evaluate.datasets; results/train/encoder.* for trained and random
#                  results/text/text.safetensors where a task needs the text tower
# OUTPUTS          results/evaluate/features/{model}-{dataset}.h5   features, cached once
#                  results/evaluate/texts/{dataset}.h5              captions, embedded
#                  results/evaluate/finetune/{model}-{dataset}.json scores after fine-tuning
#                  results/evaluate/dense/{model}-{dataset}.json    scores of patches and regions
#                  results/evaluate/{model}.json                    scores of a model
#                  results/evaluate/summary.csv, .md, .svg          all models side by side

#: What a run leaves of the stage, each asked for by name in rule all.
SCORES = [
    *expand(
        f"{RESULTS}/evaluate/features/{{model}}-{{dataset}}.h5",
        model=CONFIG.evaluate.models,
        dataset=FEATURE_SETS,
    ),
    *[path for model in CONFIG.evaluate.models for path in own_parts(model)],
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


rule evaluate_finetune:
    """Train {wildcards.model} end to end on the classes of {wildcards.dataset}, and score it."""
    input:
        encoder=encoder_files,
        images=images_of,
    output:
        scores=f"{RESULTS}/evaluate/finetune/{{model}}-{{dataset}}.json",
    log:
        f"{RESULTS}/logs/evaluate/finetune-{{model}}-{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/finetune-{{model}}-{{dataset}}.tsv"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=finetune_minutes,
    params:
        cfg=lambda wildcards: CONFIG.evaluate.for_finetune(wildcards.dataset, wildcards.model),
        code=code_hash("evaluate"),
        source=model_options,
        identity=lambda wildcards: layout.identity(DATASETS[wildcards.dataset]),
    shell:
        """
        mlcd evaluate --part finetune \
            --model {wildcards.model:q} \
            --dataset {wildcards.dataset:q} \
            {params.source} \
            --output {output.scores:q} \
            --threads {threads} \
            --config {params.cfg:q} \
            --log {log:q}
        """


rule evaluate_dense:
    """Score the patch tokens of {wildcards.model} on {wildcards.dataset}: masks, boxes, places."""
    input:
        encoder=encoder_files,
        images=images_of,
    output:
        scores=f"{RESULTS}/evaluate/dense/{{model}}-{{dataset}}.json",
    log:
        f"{RESULTS}/logs/evaluate/dense-{{model}}-{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/dense-{{model}}-{{dataset}}.tsv"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=features_minutes,
    params:
        cfg=lambda wildcards: CONFIG.evaluate.for_dense(wildcards.dataset, wildcards.model),
        code=code_hash("evaluate"),
        source=model_options,
        identity=lambda wildcards: layout.identity(DATASETS[wildcards.dataset]),
    shell:
        """
        mlcd evaluate --part dense \
            --model {wildcards.model:q} \
            --dataset {wildcards.dataset:q} \
            {params.source} \
            --output {output.scores:q} \
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
            f"{RESULTS}/evaluate/features/{{{{model}}}}-{{dataset}}.h5", dataset=FEATURE_SETS
        ),
        more=lambda wildcards: own_parts(wildcards.model),
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
        files=lambda wildcards, input: options_of(input, "features", "more", "texts"),
    shell:
        """
        mlcd evaluate --part metrics \
            --model {wildcards.model:q} {params.files} {params.tower} \
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
