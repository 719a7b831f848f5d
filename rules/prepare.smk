# prepare: cut the URL lists, and the images on disk, into chunks, one job per chunk.
#
# REQUIRED INPUTS  config metadata: the URL lists, and images on disk, which were listed in
#                  results/listings/{name}.parquet when the Snakefile was read
# OUTPUTS          results/urls/{chunk}.parquet   rows to fetch, or where images on disk lie
#                  results/urls/{chunk}.json      counts of rows kept and refused


rule prepare:
    """Cut rows of {wildcards.chunk} out of its list."""
    input:
        # ancient: a copied list has a new time; its identity below tells whether it is another.
        metadata=lambda wildcards: ancient(CHUNKS[wildcards.chunk].list),
    output:
        table=f"{RESULTS}/urls/{{chunk}}.parquet",
        counts=f"{RESULTS}/urls/{{chunk}}.json",
    log:
        f"{RESULTS}/logs/prepare/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/prepare/{{chunk}}.tsv"
    threads: 1
    resources:
        # The URLs of the chunk, to find doubles.
        mem_mb=memory(1000, row_bytes=500),
        runtime=minutes(15, rows_per_second=10_000),
    params:
        cfg=CONFIG.prepare.for_chunks(),
        code=code_hash("prepare"),
        part=lambda wildcards: CHUNKS[wildcards.chunk].part,
        identity=lambda wildcards: (
            CHUNKS[wildcards.chunk].identity or file_identity(CHUNKS[wildcards.chunk].list)
        ),
    shell:
        """
        mlcd prepare \
            --metadata {input.metadata:q} \
            --chunk-index {params.part} \
            --output {output.table:q} \
            --config {params.cfg:q} \
            --log {log:q}
        """
