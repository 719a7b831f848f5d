# train: the encoder, by DeepSpeed, with the classifier sharded over ranks. A gang job: the rule
# starts all ranks through submitit (here or on Slurm), waits, and shows what rank 0 says.
#
# REQUIRED INPUTS  results/labels/{chunk}.h5, results/embeddings/{chunk}.h5 (where pictures lie),
#                  results/images/{chunk}/manifest.json and tars, results/clusters/centroids.h5
# OUTPUTS          results/train/encoder.safetensors, encoder.json   the encoder and its description
#                  results/train/metrics.jsonl                       loss, norms, rates by step


rule train:
    """Train the encoder against the K centres."""
    input:
        labels=of_chunks("labels/{chunk}.h5"),
        embeddings=of_chunks("embeddings/{chunk}.h5"),
        images=of_chunks("images/{chunk}/manifest.json"),
        centroids=f"{RESULTS}/clusters/centroids.h5",
    output:
        weights=f"{RESULTS}/train/encoder.safetensors",
        description=f"{RESULTS}/train/encoder.json",
        metrics=f"{RESULTS}/train/metrics.jsonl",
    log:
        f"{RESULTS}/logs/train.log",
    benchmark:
        f"{RESULTS}/benchmarks/train.tsv"
    # On a cluster this rule waits on the login node while the gang of ranks works.
    localrule: True
    conda:
        "../environment.yml"
    threads: 2
    resources:
        launcher="local",
        nodes=1,
        ranks_per_node=2,
        threads_per_rank=lambda wildcards, threads: max(1, threads // 2),
        checkpoint_every=100,
        # Pictures a rank takes at once, in both phases; 0: its whole share of the batch.
        micro_batch=0,
        high_res_micro_batch=0,
        # auto is judged on the machine that runs this rule: a login node may have no GPU.
        device="auto",
        # Of the Slurm job: memory a node, time limit, partition, account, starts after the first.
        mem_mb=8000,
        runtime=1440,
        slurm_partition="",
        slurm_account="",
        requeues=50,
        # Further options of the launcher, such as --slurm-option constraint=a100.
        launch_options="",
    params:
        cfg=section("train"),
        code=code_hash("train"),
        folder=subpath(output.weights, parent=True),
    shell:
        """
        mlcd train \
            --labels {input.labels:q} \
            --embeddings {input.embeddings:q} \
            --images {input.images:q} \
            --centroids {input.centroids:q} \
            --output {params.folder:q} \
            --launcher {resources.launcher} \
            --nodes {resources.nodes} \
            --ranks-per-node {resources.ranks_per_node} \
            --threads {resources.threads_per_rank} \
            --checkpoint-every {resources.checkpoint_every} \
            --micro-batch {resources.micro_batch} \
            --high-res-micro-batch {resources.high_res_micro_batch} \
            --device {resources.device} \
            --mem-mb {resources.mem_mb} \
            --timeout-min {resources.runtime} \
            --requeues {resources.requeues} \
            --partition={resources.slurm_partition:q} \
            --account={resources.slurm_account:q} \
            {resources.launch_options} \
            --config {params.cfg:q} \
            --log {log:q}
        """
