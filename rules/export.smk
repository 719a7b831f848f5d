# export: the trained encoder in formats that other programs load, each checked by equal outputs.
#
# REQUIRED INPUTS  results/train/encoder.safetensors, encoder.json
#                  results/clusters/centroids.h5, results/labels of one chunk,
#                  results/evaluate/summary.csv                                 for the model card
# OUTPUTS          results/export/{format}/check.json   written last, beside weights and config


rule export:
    """Export the encoder for {wildcards.format} and compare its outputs."""
    input:
        weights=f"{RESULTS}/train/encoder.safetensors",
        description=f"{RESULTS}/train/encoder.json",
        centroids=f"{RESULTS}/clusters/centroids.h5",
        labels=of_chunks("labels/{chunk}.h5")[:1],
        summary=[f"{RESULTS}/evaluate/summary.csv"] if DATASETS else [],
    output:
        check=f"{RESULTS}/export/{{format}}/check.json",
    log:
        f"{RESULTS}/logs/export/{{format}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export/{{format}}.tsv"
    conda:
        "../environment.yml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        cfg=lambda wildcards: json.dumps(
            {**CONFIG.export.model_dump(mode="json"), "formats": [wildcards.format]}
        ),
        code=code_hash("export"),
        summary=lambda wildcards, input: as_options({"summary": input.summary} if DATASETS else {}),
        lists=[Path(name).name for name in CONFIG.metadata],
        encoder=subpath(input.weights, parent=True),
        folder=subpath(output.check, ancestor=2),
    shell:
        """
        mlcd export \
            --encoder {params.encoder:q} \
            --output {params.folder:q} \
            --centroids {input.centroids:q} \
            --labels {input.labels:q} \
            {params.summary} \
            --lists {params.lists:q} \
            --config {params.cfg:q} \
            --log {log:q}
        """
