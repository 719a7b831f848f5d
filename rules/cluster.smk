# cluster: spherical k-means over the embeddings of all chunks. A gang job: the rule starts all ranks
# (here or as one Slurm job), waits, and shows what rank 0 says.
#
# REQUIRED INPUTS  results/embeddings/{chunk}.h5, all chunks; of a curated run
#                  results/curate/embeddings/{chunk}.h5, there and in the rules after this one;
#                  with regions.source results/regions/{chunk}.h5 beside them
# OUTPUTS          results/clusters/centroids.h5
#                  results/clusters/iterations.jsonl   objective, shift, empty and largest clusters


if CONFIG.cluster.centers is None:

    rule cluster:
        """Find the K centers of all embeddings."""
        input:
            embeddings=[*of_chunks(EMBEDDINGS), *REGIONS],
        output:
            centroids=f"{RESULTS}/clusters/centroids.h5",
            iterations=f"{RESULTS}/clusters/iterations.jsonl",
        log:
            f"{RESULTS}/logs/cluster.log",
        benchmark:
            f"{RESULTS}/benchmarks/cluster.tsv"
        # On a cluster this rule waits on the login node while the gang of ranks works.
        localrule: True
        threads: 2
        resources:
            **GANG,
            ranks_per_node=1,
            threads_per_rank=lambda wildcards, threads: threads,
            mem_mb=memory_for_centers(6000, 16),
            # Where the initial centers lie; what they are is a parameter.
            initial=CONFIG.cluster.initial or "null",
        params:
            cfg=CONFIG.cluster.for_centroids(),
            gang=gang_options,
            code=code_hash("cluster"),
            initial=file_identity(CONFIG.cluster.initial) if CONFIG.cluster.initial else None,
        # The centers come on top of the limit: a quarter of a node's memory is left for them.
        shell:
            """
            mlcd cluster \
                --embeddings {input.embeddings:q} \
                --output {output.centroids:q} \
                --memory-limit $(({resources.mem_mb} * 3 / 4 / {resources.ranks_per_node}))MB \
                {params.gang} \
                --config {params.cfg:q} --initial={resources.initial:q} \
                --log {log:q}
            """
