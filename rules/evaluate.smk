# evaluate: the trained encoder beside raw pixels, random weights and the frozen encoder.
#
# REQUIRED INPUTS  config evaluate.datasets; results/train/encoder.* for trained and random
# OUTPUTS          results/evaluate/features/{model}-{dataset}.h5   features, cached once
#                  results/evaluate/{model}.json                    scores of a model
#                  results/evaluate/summary.csv, .md, .svg          all models side by side


rule evaluate_features:
    """Compute the features of {wildcards.model} on {wildcards.dataset}."""
    input:
        encoder=encoder_files,
        pictures=pictures_of,
    output:
        features=f"{RESULTS}/evaluate/features/{{model}}-{{dataset}}.h5",
    log:
        f"{RESULTS}/logs/evaluate/features-{{model}}-{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/features-{{model}}-{{dataset}}.tsv"
    conda:
        "../environment.yml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=240,
    params:
        cfg=features_section,
        code=code_hash("evaluate"),
        source=model_options,
        identity=lambda wildcards: datasets.identity(DATASETS[wildcards.dataset]),
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


rule evaluate:
    """Score the features of {wildcards.model}: k-NN, linear probe, retrieval, zero-shot, tags."""
    input:
        tower=tower_files,
        features=expand(
            f"{RESULTS}/evaluate/features/{{{{model}}}}-{{dataset}}.h5", dataset=DATASETS
        ),
    output:
        metrics=f"{RESULTS}/evaluate/{{model}}.json",
    log:
        f"{RESULTS}/logs/evaluate/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/{{model}}.tsv"
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=240,
    params:
        cfg=section("evaluate"),
        code=code_hash("evaluate"),
        tower=lambda wildcards, input: (
            f"--text {RESULTS}/text --encoder {RESULTS}/train" if input.tower else ""
        ),
    shell:
        """
        mlcd evaluate --part metrics \
            --features {input.features:q} {params.tower} \
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
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_hash("evaluate"),
        # The paper's figures that stand beside this run's.
        figures=json.dumps(published.figures(CONFIG), ensure_ascii=False),
    shell:
        """
        mlcd evaluate --part summary \
            --metrics {input.metrics:q} \
            --figures {params.figures:q} \
            --output {output.table:q} \
            --log {log:q}
        """
