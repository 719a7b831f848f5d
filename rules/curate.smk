# curate: which images are kept, between embed and cluster. Part of a run where the config says
# curate.enabled: the later stages then read results/curate/embeddings/{chunk}.h5.
#
# REQUIRED INPUTS  results/embeddings/{chunk}.h5, results/images/{chunk}/manifest.json and rows.parquet;
#                  with curate.where the lists of config metadata, or the tables of curate.columns
# OUTPUTS          results/curate/centroids.h5, iterations.jsonl   coarse clusters
#                  results/curate/facts/{chunk}.h5        clusters, pixels, refused by a condition
#                  results/curate/rows/{chunk}.h5         kept or not, why, and who stands for it
#                  results/curate/summary.json            images left out, by reason
#                  results/curate/embeddings/{chunk}.h5   embeddings of kept images
#                  results/text/curated/{chunk}.h5        the same of the trained encoder (rules/text.smk)


rule curate_cluster:
    """Find a few coarse centers of all embeddings."""
    input:
        embeddings=of_chunks("embeddings/{chunk}.h5"),
    output:
        centroids=f"{RESULTS}/curate/centroids.h5",
        iterations=f"{RESULTS}/curate/iterations.jsonl",
    log:
        f"{RESULTS}/logs/curate/cluster.log",
    benchmark:
        f"{RESULTS}/benchmarks/curate/cluster.tsv"
    # On a cluster this rule waits on the login node while the gang of ranks works.
    localrule: True
    threads: 2
    resources:
        **GANG,
        ranks_per_node=1,
        threads_per_rank=lambda wildcards, threads: threads,
        mem_mb=8000,
    params:
        cfg=CONFIG.curate.for_clusters(sum(chunk.rows for chunk in CHUNKS.values())),
        gang=gang_options,
        code=code_hash("cluster"),
    # The centers come on top of the limit: a quarter of a node's memory is left for them.
    shell:
        """
        mlcd cluster \
            --embeddings {input.embeddings:q} \
            --output {output.centroids:q} \
            --memory-limit $(({resources.mem_mb} * 3 / 4 / {resources.ranks_per_node}))MB \
            {params.gang} \
            --config {params.cfg:q} \
            --log {log:q}
        """


rule curate_facts:
    """Find the coarse clusters of each image of {wildcards.chunk}, and what conditions refuse."""
    input:
        embeddings=f"{RESULTS}/embeddings/{{chunk}}.h5",
        manifest=f"{RESULTS}/images/{{chunk}}/manifest.json",
        table=f"{RESULTS}/images/{{chunk}}/rows.parquet",
        centroids=f"{RESULTS}/curate/centroids.h5",
        # What holds the columns of conditions: the chunk's list, or tables.
        metadata=curate_list,
        columns=[ancient(path) for path in CURATE_TABLES],
        urls=f"{RESULTS}/urls/{{chunk}}.parquet" if CURATE_TABLES else [],
    output:
        facts=f"{RESULTS}/curate/facts/{{chunk}}.h5",
    log:
        f"{RESULTS}/logs/curate/facts-{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/curate/facts-{{chunk}}.tsv"
    threads: 1
    resources:
        mem_mb=memory(4000, row_bytes=3000),
        runtime=minutes(30, rows_per_second=2000),
    params:
        cfg=CONFIG.curate.for_facts(),
        code=code_hash("curate"),
        # A function: each job reads this file, and none but this one needs them.
        tables=lambda wildcards: [file_identity(path) for path in CURATE_TABLES],
        identity=curate_list_identity,
        options=curate_list_options,
        sources=lambda wildcards, input: options_of(input, "metadata", "columns", "urls"),
    shell:
        """
        mlcd curate --part facts \
            --embeddings {input.embeddings:q} \
            --images {input.manifest:q} \
            --centroids {input.centroids:q} \
            {params.sources} {params.options} \
            --output {output.facts:q} \
            --memory-limit $(({resources.mem_mb} * 3 / 4))MB \
            --threads {threads} \
            --config {params.cfg:q} \
            --log {log:q}
        """


rule curate:
    """Choose over all chunks which images are kept."""
    input:
        embeddings=of_chunks("embeddings/{chunk}.h5"),
        facts=of_chunks("curate/facts/{chunk}.h5"),
    output:
        rows=of_chunks("curate/rows/{chunk}.h5"),
        summary=f"{RESULTS}/curate/summary.json",
    log:
        f"{RESULTS}/logs/curate/curate.log",
    benchmark:
        f"{RESULTS}/benchmarks/curate/curate.tsv"
    threads: 2
    resources:
        # About 100 bytes per image are held, and as many rows at a time as the rest has room for.
        mem_mb=memory_for_all(6000, row_bytes=130),
        # It resumes after its last whole pass, in the next attempt too.
        runtime=1440,
    params:
        cfg=CONFIG.curate.for_choice(),
        code=code_hash("curate"),
        folder=subpath(output.summary, parent=True),
    shell:
        """
        mlcd curate --part choice \
            --embeddings {input.embeddings:q} \
            --facts {input.facts:q} \
            --output {params.folder:q} \
            --memory-limit $(({resources.mem_mb} * 3 / 4))MB \
            --threads {threads} \
            --config {params.cfg:q} \
            --log {log:q}
        """


rule curate_kept:
    """Write the embeddings of the kept images of {wildcards.chunk}."""
    input:
        embeddings=f"{RESULTS}/embeddings/{{chunk}}.h5",
        rows=f"{RESULTS}/curate/rows/{{chunk}}.h5",
    output:
        embeddings=f"{RESULTS}/curate/embeddings/{{chunk}}.h5",
    log:
        f"{RESULTS}/logs/curate/kept-{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/curate/kept-{{chunk}}.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000, row_bytes=100),
        runtime=minutes(15, rows_per_second=5000),
    params:
        code=code_hash("curate"),
    shell:
        """
        mlcd curate --part kept \
            --embeddings {input.embeddings:q} \
            --rows {input.rows:q} \
            --output {output.embeddings:q} \
            --log {log:q}
        """


use rule curate_kept as curate_text with:
    input:
        embeddings=f"{RESULTS}/text/embeddings/{{chunk}}.h5",
        rows=f"{RESULTS}/curate/rows/{{chunk}}.h5",
    output:
        embeddings=f"{RESULTS}/text/curated/{{chunk}}.h5",
    log:
        f"{RESULTS}/logs/curate/text-{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/curate/text-{{chunk}}.tsv"


#: What a curated run asks for by name.
CURATED = [
    *of_chunks("curate/facts/{chunk}.h5"),
    *of_chunks("curate/rows/{chunk}.h5"),
    *of_chunks("curate/embeddings/{chunk}.h5"),
    f"{RESULTS}/curate/centroids.h5",
    f"{RESULTS}/curate/summary.json",
]
