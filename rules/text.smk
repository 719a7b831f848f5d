# text: a text tower against the frozen encoder, for zero-shot classes. Part of a run where the
# config says text.enabled. The training is a gang job as in rules/train.smk.
#
# REQUIRED INPUTS  results/images/{chunk}/manifest.json and rows.parquet, and the tars they name;
#                  results/train/encoder.safetensors, encoder.json
# OUTPUTS          results/text/embeddings/{chunk}.h5   images through the trained encoder
#                  results/text/captions/{chunk}.h5     tokens of their captions
#                  results/text/text.safetensors, text.json, metrics.jsonl


rule text_embed:
    """Embed the images of {wildcards.chunk} with the trained encoder."""
    input:
        manifest=f"{RESULTS}/images/{{chunk}}/manifest.json",
        table=f"{RESULTS}/images/{{chunk}}/rows.parquet",
        weights=f"{RESULTS}/train/encoder.safetensors",
        description=f"{RESULTS}/train/encoder.json",
    output:
        embeddings=f"{RESULTS}/text/embeddings/{{chunk}}.h5",
    log:
        f"{RESULTS}/logs/text/embed-{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/text/embed-{{chunk}}.tsv"
    threads: 2
    resources:
        mem_mb=memory(5000, row_bytes=1000, thread_mb=500),
        runtime=minutes(15, rows_per_second=100),
        max_failed=str(CONFIG.embed.max_failed),
    params:
        cfg=CONFIG.embed.for_trained_encoder(),
        code=code_hash("embed"),
        encoder=subpath(input.weights, parent=True),
    shell:
        """
        mlcd embed \
            --images {input.manifest:q} \
            --encoder {params.encoder:q} \
            --output {output.embeddings:q} \
            --threads {threads} \
            --config {params.cfg:q} --max-failed {resources.max_failed} \
            --log {log:q}
        """


rule text_captions:
    """Tokenize the captions of {wildcards.chunk}."""
    input:
        manifest=f"{RESULTS}/images/{{chunk}}/manifest.json",
        table=f"{RESULTS}/images/{{chunk}}/rows.parquet",
        embeddings=f"{RESULTS}/{TEXT_EMBEDDINGS}",
    output:
        captions=f"{RESULTS}/text/captions/{{chunk}}.h5",
    log:
        f"{RESULTS}/logs/text/captions-{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/text/captions-{{chunk}}.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000, row_bytes=1000),
        runtime=minutes(15, rows_per_second=1000),
    params:
        cfg=CONFIG.text.for_captions(),
        code=code_hash("text"),
    shell:
        """
        mlcd text --part captions \
            --embeddings {input.embeddings:q} \
            --images {input.manifest:q} \
            --output {output.captions:q} \
            --config {params.cfg:q} \
            --log {log:q}
        """


rule text:
    """Train the text tower against the frozen encoder."""
    input:
        embeddings=of_chunks(TEXT_EMBEDDINGS),
        captions=of_chunks("text/captions/{chunk}.h5"),
    output:
        weights=f"{RESULTS}/text/text.safetensors",
        description=f"{RESULTS}/text/text.json",
        metrics=f"{RESULTS}/text/metrics.jsonl",
    log:
        f"{RESULTS}/logs/text.log",
    benchmark:
        f"{RESULTS}/benchmarks/text.tsv"
    # On a cluster this rule waits on the login node while the gang of ranks works.
    localrule: True
    threads: 2
    resources:
        **GANG,
        ranks_per_node=ranks_here(CONFIG.text.batch_size),
        threads_per_rank=lambda wildcards, threads: max(1, threads // 2),
        checkpoint_every=500,
        mem_mb=8000,
    params:
        cfg=section("text"),
        gang=gang_options,
        code=code_hash("text"),
        folder=subpath(output.weights, parent=True),
    shell:
        """
        mlcd text \
            --embeddings {input.embeddings:q} \
            --captions {input.captions:q} \
            --output {params.folder:q} \
            --checkpoint-every {resources.checkpoint_every} \
            {params.gang} \
            --config {params.cfg:q} \
            --log {log:q}
        """
