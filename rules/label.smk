# label: the l nearest centers of every image, one job per chunk, and a summary over all.
#
# REQUIRED INPUTS  results/embeddings/{chunk}.h5, results/clusters/centroids.h5
# OUTPUTS          results/labels/{chunk}.h5
#                  results/labels/summary.json


if not OWN_LABELS:

    rule label:
        """Find the nearest centers of each image of {wildcards.chunk}."""
        input:
            embeddings=f"{RESULTS}/{EMBEDDINGS}",
            centroids=f"{RESULTS}/clusters/centroids.h5",
        output:
            labels=f"{RESULTS}/labels/{{chunk}}.h5",
        log:
            f"{RESULTS}/logs/label/{{chunk}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/label/{{chunk}}.tsv"
        threads: 1
        resources:
            mem_mb=memory_for_centers(4000, 8),
            runtime=label_minutes,
            min_agreement=str(CONFIG.label.min_agreement),
        params:
            cfg=CONFIG.label.for_labels(),
            code=code_hash("label"),
        shell:
            """
            mlcd label \
                --embeddings {input.embeddings:q} \
                --centroids {input.centroids:q} \
                --output {output.labels:q} \
                --memory-limit $(({resources.mem_mb} * 3 / 4))MB \
                --threads {threads} \
                --config {params.cfg:q} --min-agreement {resources.min_agreement} \
                --log {log:q}
            """


rule label_summary:
    """Count how labels are used over all chunks."""
    input:
        labels=of_chunks("labels/{chunk}.h5"),
        centroids=CENTROIDS,
    output:
        summary=f"{RESULTS}/labels/summary.json",
    log:
        f"{RESULTS}/logs/label/summary.log",
    threads: 1
    resources:
        mem_mb=memory_for_centers(4000, 6),
        runtime=240,
    params:
        code=code_hash("label"),
        centroids=lambda wildcards, input: options_of(input, "centroids"),
    shell:
        """
        mlcd label --summarize {input.labels:q} {params.centroids} \
            --output {output.summary:q} \
            --log {log:q}
        """
