# export: the trained encoder in formats that other programs load, each checked by equal outputs.
#
# REQUIRED INPUTS  results/train/encoder.safetensors, encoder.json
# OUTPUTS          results/export/{format}/check.json   written last, beside weights and config


rule export:
    """Export the encoder for {wildcards.format} and compare its outputs."""
    input:
        weights=f"{RESULTS}/train/encoder.safetensors",
        description=f"{RESULTS}/train/encoder.json",
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
            {"formats": [wildcards.format], "tolerance": CONFIG.export.tolerance}
        ),
        code=code_hash("export"),
        encoder=subpath(input.weights, parent=True),
        folder=subpath(output.check, ancestor=2),
    shell:
        """
        mlcd export \
            --encoder {params.encoder:q} \
            --output {params.folder:q} \
            --config {params.cfg:q} \
            --log {log:q}
        """
