# cluster: spherical k-means over the embeddings of all chunks.
#
# REQUIRED INPUTS  results/embeddings/{chunk}.h5, all chunks
# OUTPUTS          results/clusters/centroids.h5


rule cluster:
    """Find the K centres of all embeddings."""
    input:
        embeddings=of_chunks("embeddings/{chunk}.h5"),
    output:
        centroids=f"{RESULTS}/clusters/centroids.h5",
    log:
        f"{RESULTS}/logs/cluster.log",
    benchmark:
        f"{RESULTS}/benchmarks/cluster.tsv"
    conda:
        "../environment.yml"
    threads: 2
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=1440,
    params:
        cfg=section("cluster"),
        code=code_hash("cluster"),
    shell:
        """
        mlcd cluster \
            --embeddings {input.embeddings:q} \
            --output {output.centroids:q} \
            --memory-limit {resources.mem_mb}MB \
            --threads {threads} \
            --config {params.cfg:q} \
            --log {log:q}
        """
