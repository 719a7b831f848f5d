# own: the rules embed, cluster and label where the config names people's own embeddings
# (embed.embeddings), centers (cluster.centers) or labels (label.labels).
#
# REQUIRED INPUTS  these files; results/images/{chunk}/manifest.json and rows.parquet
# OUTPUTS          as of the rules that they stand in for


if OWN_EMBEDDINGS:

    rule embed:
        """Take the own embeddings of the images of {wildcards.chunk}."""
        input:
            manifest=f"{RESULTS}/images/{{chunk}}/manifest.json",
            table=f"{RESULTS}/images/{{chunk}}/rows.parquet",
            own=own_files(OWN_EMBEDDINGS),
            names=own_keys(OWN_EMBEDDINGS),
        output:
            embeddings=f"{RESULTS}/embeddings/{{chunk}}.h5",
        log:
            f"{RESULTS}/logs/embed/{{chunk}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/embed/{{chunk}}.tsv"
        threads: 1
        resources:
            mem_mb=memory(4000, row_bytes=3000),
            runtime=minutes(30, rows_per_second=2000),
            max_failed=str(CONFIG.embed.max_failed),
        params:
            cfg=CONFIG.embed.for_features(),
            code=code_hash("embed"),
            own=own_options(OWN_EMBEDDINGS),
            identity=lambda wildcards: own_rows.identity(OWN_EMBEDDINGS[wildcards.chunk], EMBEDDING),
        shell:
            """
            mlcd embed \
                --images {input.manifest:q} \
                --embeddings {input.own:q} {params.own} \
                --output {output.embeddings:q} \
                --config {params.cfg:q} --max-failed {resources.max_failed} \
                --log {log:q}
            """


if CONFIG.cluster.centers and not KEEPS_CENTERS:

    rule cluster:
        """Keep the centers of config cluster.centers."""
        input:
            centers=ancient(CONFIG.cluster.centers),
        output:
            centroids=f"{RESULTS}/clusters/centroids.h5",
            iterations=f"{RESULTS}/clusters/iterations.jsonl",
        log:
            f"{RESULTS}/logs/cluster.log",
        benchmark:
            f"{RESULTS}/benchmarks/cluster.tsv"
        threads: 1
        resources:
            mem_mb=memory_for_centers(4000, 16),
            runtime=60,
        params:
            cfg=CONFIG.cluster.for_centroids(),
            code=code_hash("cluster"),
            identity=file_identity(CONFIG.cluster.centers),
        shell:
            """
            mlcd cluster \
                --centers {input.centers:q} \
                --output {output.centroids:q} \
                --config {params.cfg:q} \
                --log {log:q}
            """


if OWN_LABELS:

    rule label:
        """Take the own labels of the images of {wildcards.chunk}."""
        input:
            manifest=f"{RESULTS}/images/{{chunk}}/manifest.json",
            table=f"{RESULTS}/images/{{chunk}}/rows.parquet",
            own=own_files(OWN_LABELS),
            names=own_keys(OWN_LABELS),
        output:
            labels=f"{RESULTS}/labels/{{chunk}}.h5",
        log:
            f"{RESULTS}/logs/label/{{chunk}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/label/{{chunk}}.tsv"
        threads: 1
        resources:
            mem_mb=memory(4000, row_bytes=3000),
            runtime=minutes(30, rows_per_second=2000),
        params:
            cfg=CONFIG.label.for_labels(),
            code=code_hash("label"),
            classes=CONFIG.cluster.k,
            own=own_options(OWN_LABELS),
            identity=lambda wildcards: own_rows.identity(OWN_LABELS[wildcards.chunk], LABEL),
        shell:
            """
            mlcd label \
                --images {input.manifest:q} \
                --labels {input.own:q} {params.own} \
                --classes {params.classes} \
                --output {output.labels:q} \
                --config {params.cfg:q} \
                --log {log:q}
            """
