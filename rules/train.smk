# train: the encoder, by DeepSpeed, with the classifier sharded over ranks. A gang job: the rule
# starts all ranks through submitit (here or on Slurm), waits, and shows what rank 0 says.
#
# REQUIRED INPUTS  results/labels/{chunk}.h5, results/embeddings/{chunk}.h5 (where images lie),
#                  results/images/{chunk}/manifest.json and tars, results/clusters/centroids.h5,
#                  results/ocr/labels/{chunk}.h5 where config train.ocr_weight is over 0,
#                  and the files of config train.initial;
#                  with train.regions: boxes results/regions/{chunk}.h5 and labels/{chunk}.h5 there
# OUTPUTS          results/train/encoder.safetensors, encoder.json   the encoder and its description
#                  results/train/metrics.jsonl                       loss, norms, rates by step
# where train.regions asks: results/train/regions.safetensors          the region layer
# and, undeclared  results/train/live.jsonl   scores while it trained, where evaluate.live_every asks

#: Live scores change no result. As a parameter that comes of resources it is not compared.
LIVE_OPTIONS = (
    as_options({"live": CONFIG.evaluate.for_live()}) if CONFIG.evaluate.live_every else ""
)
#: All that the trained encoder is read from.
ENCODER_FILES = [
    f"{RESULTS}/train/encoder.safetensors",
    f"{RESULTS}/train/encoder.json",
    *REGION_LAYER,
]


rule train:
    """Train the encoder against the K centers."""
    input:
        labels=of_chunks("labels/{chunk}.h5"),
        # Own labels say themselves where images lie, and may come without centers.
        embeddings=[] if OWN_LABELS else of_chunks(EMBEDDINGS),
        images=of_chunks("images/{chunk}/manifest.json"),
        centroids=CENTROIDS,
        # With train.regions: boxes.
        region_embeddings=TRAIN_REGIONS,
        region_labels=TRAIN_REGION_LABELS,
        ocr_labels=OCR_LABELS,
    output:
        weights=f"{RESULTS}/train/encoder.safetensors",
        description=f"{RESULTS}/train/encoder.json",
        metrics=f"{RESULTS}/train/metrics.jsonl",
        regions=REGION_LAYER,
    log:
        f"{RESULTS}/logs/train.log",
    benchmark:
        f"{RESULTS}/benchmarks/train.tsv"
    # On a cluster this rule waits on the login node while the gang of ranks works.
    localrule: True
    threads: 2
    resources:
        **GANG,
        ranks_per_node=ranks_here(CONFIG.train.batch_size),
        threads_per_rank=lambda wildcards, threads: max(1, threads // 2),
        checkpoint_every=100,
        # Images that a rank takes at once, in both phases; auto: what fits a GPU; 0: its whole
        # share of the batch, which CPUs take under auto too.
        micro_batch="auto",
        high_res_micro_batch="auto",
        mem_mb=8000,
        # Where live scores are computed, beside rank 0, and by how many threads.
        live_device="cpu",
        live_threads=1,
        # Where the first weights lie; what they are is a parameter.
        initial=CONFIG.train.initial or "null",
    params:
        cfg=CONFIG.train.for_encoder(),
        initial=initial_identity(),
        gang=gang_options,
        live=lambda wildcards, resources: LIVE_OPTIONS,
        code=code_hash("train"),
        folder=subpath(output.weights, parent=True),
        sources=lambda wildcards, input: options_of(
            input, "embeddings", "centroids", "region_embeddings", "region_labels", "ocr_labels"
        ),
    shell:
        """
        mlcd train \
            --labels {input.labels:q} {params.sources} \
            --images {input.images:q} \
            --output {params.folder:q} \
            --checkpoint-every {resources.checkpoint_every} \
            --micro-batch {resources.micro_batch} \
            --high-res-micro-batch {resources.high_res_micro_batch} \
            {params.gang} {params.live} \
            --live-device {resources.live_device} --live-threads {resources.live_threads} \
            --config {params.cfg:q} --initial={resources.initial:q} \
            --log {log:q}
        """
