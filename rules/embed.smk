# embed: features of a frozen encoder for every image, one job per chunk.
#
# REQUIRED INPUTS  results/images/{chunk}/manifest.json and rows.parquet, and the tars they name
# OUTPUTS          results/embeddings/{chunk}.h5


if not OWN_EMBEDDINGS:

    rule embed:
        """Embed the images of {wildcards.chunk} with the frozen encoder."""
        input:
            manifest=f"{RESULTS}/images/{{chunk}}/manifest.json",
            table=f"{RESULTS}/images/{{chunk}}/rows.parquet",
        output:
            embeddings=f"{RESULTS}/embeddings/{{chunk}}.h5",
        log:
            f"{RESULTS}/logs/embed/{{chunk}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/embed/{{chunk}}.tsv"
        threads: 2
        resources:
            # Of the threads half are processes that decode images, beside a GPU all but one.
            mem_mb=memory(5000, row_bytes=1000, thread_mb=500),
            # A GPU with eight cores beside it is some times faster; ViT-L/14 on a CPU is slower, and
            # resumes from where it was in the next attempt.
            runtime=minutes(15, rows_per_second=100),
            max_failed=str(CONFIG.embed.max_failed),
        params:
            cfg=CONFIG.embed.for_features(),
            code=code_hash("embed"),
        shell:
            """
            mlcd embed \
                --images {input.manifest:q} \
                --output {output.embeddings:q} \
                --threads {threads} \
                --config {params.cfg:q} --max-failed {resources.max_failed} \
                --log {log:q}
            """
