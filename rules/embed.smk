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
        # Half of the threads are processes that decode pictures.
        mem_mb=memory(5000, row_bytes=1000, thread_mb=500),
        # A GPU with eight cores beside it is some times faster; ViT-L/14 on a CPU is slower, and
        # goes on from where it was in the next attempt.
        runtime=minutes(15, rows_a_second=100),
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
