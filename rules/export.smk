# export: the trained encoder in formats that other programs load, each checked by equal outputs.
#
# REQUIRED INPUTS  results/train/encoder.safetensors, encoder.json (regions.safetensors)
#                  results/clusters/centroids.h5, results/labels of one chunk,
#                  results/evaluate/summary.csv                                 for the model card
# OUTPUTS          results/export/{format}/check.json   written last, beside weights and config


rule export:
    """Export the encoder for {wildcards.format} and compare its outputs."""
    input:
        weights=f"{RESULTS}/train/encoder.safetensors",
        description=f"{RESULTS}/train/encoder.json",
        regions=REGION_LAYER,
        centroids=CENTROIDS,
        labels=of_chunks("labels/{chunk}.h5")[:1],
        summary=[f"{RESULTS}/evaluate/summary.csv"] if DATASETS else [],
    output:
        check=f"{RESULTS}/export/{{format}}/check.json",
    log:
        f"{RESULTS}/logs/export/{{format}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export/{{format}}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        cfg=lambda wildcards: CONFIG.export.changed(formats=[wildcards.format]).to_json(),
        code=code_hash("export"),
        summary=lambda wildcards, input: as_options({"summary": input.summary} if DATASETS else {}),
        centroids=lambda wildcards, input: options_of(input, "centroids"),
        lists=[Path(name).name for name in CONFIG.metadata],
        encoder=subpath(input.weights, parent=True),
        folder=subpath(output.check, ancestor=2),
        # The folder's other files are no outputs of Snakemake's: a removed or edited one is found here.
        made=lambda wildcards: makings(f"{RESULTS}/export/{wildcards.format}/check.json"),
    shell:
        """
        mlcd export \
            --encoder {params.encoder:q} \
            --output {params.folder:q} {params.centroids} \
            --labels {input.labels:q} \
            {params.summary} \
            --lists {params.lists:q} \
            --config {params.cfg:q} \
            --log {log:q}
        """
