# cluster: spherical k-means over the embeddings of all chunks. A gang job: the rule starts all ranks
# (here or as one Slurm job), waits, and shows what rank 0 says.
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
    # On a cluster this rule waits on the login node while the gang of ranks works.
    localrule: True
    conda:
        "../environment.yml"
    threads: 2
    resources:
        launcher="local",
        nodes=1,
        ranks_per_node=1,
        threads_per_rank=lambda wildcards, threads: threads,
        # auto is judged on the machine that runs this rule: a login node may have no GPU.
        device="auto",
        # Of the Slurm job: memory a node, time limit, partition, account, starts after the first.
        mem_mb=memory_for_centres(6000, 16),
        runtime=1440,
        slurm_partition="",
        slurm_account="",
        requeues=50,
        # Further options of the launcher, such as --slurm-option constraint=a100.
        launch_options="",
        # Where the initial centres lie; what they are is a parameter.
        initial=CONFIG.cluster.initial or "null",
    params:
        cfg=cluster_section(),
        code=code_hash("cluster"),
        initial=file_identity(CONFIG.cluster.initial) if CONFIG.cluster.initial else None,
    # The centres come on top of the limit: a quarter of a node's memory is left for them.
    shell:
        """
        mlcd cluster \
            --embeddings {input.embeddings:q} \
            --output {output.centroids:q} \
            --memory-limit $(({resources.mem_mb} * 3 / 4 / {resources.ranks_per_node}))MB \
            --launcher {resources.launcher} \
            --nodes {resources.nodes} \
            --ranks-per-node {resources.ranks_per_node} \
            --threads {resources.threads_per_rank} \
            --device {resources.device} \
            --mem-mb {resources.mem_mb} \
            --timeout-min {resources.runtime} \
            --requeues {resources.requeues} \
            --partition={resources.slurm_partition:q} \
            --account={resources.slurm_account:q} \
            {resources.launch_options} \
            --config {params.cfg:q} --initial={resources.initial:q} \
            --log {log:q}
        """
