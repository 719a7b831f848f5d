# cluster: spherical k-means over the embeddings of all chunks.
#
# REQUIRED INPUTS  results/embeddings/{chunk}.h5, all chunks
# OUTPUTS          results/clusters/centroids.h5
#                  results/clusters/iterations.jsonl   objective, shift, empty and largest clusters


rule cluster:
    """Find the K centres of all embeddings."""
    input:
        embeddings=of_chunks("embeddings/{chunk}.h5"),
    output:
        centroids=f"{RESULTS}/clusters/centroids.h5",
        iterations=f"{RESULTS}/clusters/iterations.jsonl",
    log:
        f"{RESULTS}/logs/cluster.log",
    benchmark:
        f"{RESULTS}/benchmarks/cluster.tsv"
    conda:
        "../environment.yml"
    threads: 2
    resources:
        mem_mb=memory_for_centres(6000, 16),
        runtime=1440,
        ranks=1,
    params:
        cfg=section("cluster"),
        code=code_hash("cluster"),
        initial=file_identity(CONFIG.cluster.initial) if CONFIG.cluster.initial else None,
    # The centres come on top of the limit: a quarter of the job's memory is left for them.
    shell:
        """
        mlcd cluster \
            --embeddings {input.embeddings:q} \
            --output {output.centroids:q} \
            --memory-limit $(({resources.mem_mb} * 3 / 4))MB \
            --threads {threads} \
            --ranks-per-node {resources.ranks} \
            --config {params.cfg:q} \
            --log {log:q}
        """
