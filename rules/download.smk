# download: fetch the images of a chunk with img2dataset, or index those on disk, one job per chunk.
#
# REQUIRED INPUTS  results/urls/{chunk}.parquet, and its hash in {chunk}.json
# OUTPUTS          results/images/{chunk}/manifest.json   names and hashes of the tars, written last
#                  results/images/{chunk}/rows.parquet    every row, arrived or not, and where it lies
#                  results/images/{chunk}/*.tar           named by the manifest; 00000.index … of images on disk


rule download:
    """Fetch, or index, the images of {wildcards.chunk}."""
    input:
        urls=f"{RESULTS}/urls/{{chunk}}.parquet",
        # Its hash, which the program looks for beside it.
        counts=f"{RESULTS}/urls/{{chunk}}.json",
    output:
        manifest=f"{RESULTS}/images/{{chunk}}/manifest.json",
        table=f"{RESULTS}/images/{{chunk}}/rows.parquet",
    log:
        f"{RESULTS}/logs/download/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/download/{{chunk}}.tsv"
    threads: 2
    resources:
        # A process of img2dataset holds its imports and the images in flight.
        mem_mb=memory(2000, row_bytes=500, thread_mb=750),
        # Transfers end at the deadline; then the tars are written, their bytes read again.
        runtime=minutes(15 + round(CONFIG.download.deadline / 60 * 1.1), rows_per_second=1000),
        # Connections at once per process: waiting on the network, not computing.
        connections=32,
        retry_policy=as_options(CONFIG.download.retry_policy()),
    params:
        cfg=CONFIG.download.for_images(),
        code=code_hash("download"),
        folder=subpath(output.manifest, parent=True),
        # Tars are no outputs of Snakemake's: a removed or edited one is found here.
        made=lambda wildcards: makings(f"{RESULTS}/images/{wildcards.chunk}/manifest.json"),
    shell:
        """
        mlcd download \
            --urls {input.urls:q} \
            --output {params.folder:q} \
            --processes {threads} \
            --threads {resources.connections} \
            --config {params.cfg:q} {resources.retry_policy} \
            --log {log:q}
        """
