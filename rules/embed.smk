# embed: features of a frozen encoder for every picture, one job a chunk.
#
# REQUIRED INPUTS  results/images/{chunk}/manifest.json and rows.parquet, and the tars they name
# OUTPUTS          results/embeddings/{chunk}.h5


rule embed:
    """Embed the pictures of {wildcards.chunk} with the frozen encoder."""
    input:
        manifest=f"{RESULTS}/images/{{chunk}}/manifest.json",
        table=f"{RESULTS}/images/{{chunk}}/rows.parquet",
    output:
        embeddings=f"{RESULTS}/embeddings/{{chunk}}.h5",
    log:
        f"{RESULTS}/logs/embed/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/embed/{{chunk}}.tsv"
    conda:
        "../environment.yml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=720,
        max_failed=str(CONFIG.embed.max_failed),
    params:
        cfg=embed_section(),
        code=code_hash("embed"),
    shell:
        """
        mlcd embed \
            --images {input.manifest:q} \
            --output {output.embeddings:q} \
            --threads {threads} \
            --workers $((({threads} + 1) / 2)) \
            --config {params.cfg:q} --max-failed {resources.max_failed} \
            --log {log:q}
        """
