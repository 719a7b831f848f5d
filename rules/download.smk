# download: fetch the pictures of a chunk with img2dataset, one job a chunk.
#
# REQUIRED INPUTS  results/urls/{chunk}.parquet
# OUTPUTS          results/images/{chunk}/manifest.json   names and hashes of the tars, written last
#                  results/images/{chunk}/rows.parquet    every row, arrived or not, and where it lies
#                  results/images/{chunk}/*.tar           named by the manifest


rule download:
    """Fetch the pictures of {wildcards.chunk}."""
    input:
        urls=f"{RESULTS}/urls/{{chunk}}.parquet",
    output:
        manifest=f"{RESULTS}/images/{{chunk}}/manifest.json",
        table=f"{RESULTS}/images/{{chunk}}/rows.parquet",
    log:
        f"{RESULTS}/logs/download/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/download/{{chunk}}.tsv"
    conda:
        "../environment.yml"
    threads: 2
    resources:
        # A process of img2dataset holds its imports and the pictures in flight.
        mem_mb=memory(2000, row_bytes=500, thread_mb=750),
        # Transfers end at the deadline; then the tars are written, their bytes read again.
        runtime=minutes(15 + round(CONFIG.download.deadline / 60 * 1.1), rows_a_second=1000),
        # Connections at once a process: waiting on the network, not computing.
        connections=32,
        patience=download_patience(),
    params:
        # Only what decides the pictures' bytes; another deadline or rate must not fetch all again.
        cfg=json.dumps(CONFIG.download.fetched() | {"rows_per_tar": CONFIG.download.rows_per_tar}),
        code=code_hash("download"),
        folder=subpath(output.manifest, parent=True),
    shell:
        """
        mlcd download \
            --urls {input.urls:q} \
            --output {params.folder:q} \
            --processes {threads} \
            --threads {resources.connections} \
            --config {params.cfg:q} {resources.patience} \
            --log {log:q}
        """
