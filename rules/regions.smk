# regions: boxes in images, embedded and labeled as images are. Part of a run where the config names
# a regions.source: cluster then takes embeddings of images and of regions.
#
# REQUIRED INPUTS  results/images/{chunk}/manifest.json and rows.parquet, and the tars they name;
#                  results/embeddings/{chunk}.h5, of a curated run results/curate/embeddings/{chunk}.h5;
#                  with source column the lists of config metadata, or the tables of regions.tables
# OUTPUTS          results/regions/{chunk}.h5          embeddings of regions, and their boxes
#                  results/regions/labels/{chunk}.h5   nearest centers of each, as rule label finds them


if CONFIG.regions.source is not None:

    rule regions:
        """Find and embed regions of the images of {wildcards.chunk}."""
        input:
            manifest=f"{RESULTS}/images/{{chunk}}/manifest.json",
            table=f"{RESULTS}/images/{{chunk}}/rows.parquet",
            embeddings=f"{RESULTS}/{EMBEDDINGS}",
            # What holds the column of boxes: the chunk's list, or tables.
            metadata=regions_list,
            tables=[ancient(path) for path in BOX_TABLES],
            urls=f"{RESULTS}/urls/{{chunk}}.parquet" if BOX_TABLES else [],
        output:
            regions=f"{RESULTS}/regions/{{chunk}}.h5",
        log:
            f"{RESULTS}/logs/regions/{{chunk}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/regions/{{chunk}}.tsv"
        threads: 2
        resources:
            # As embed: half of the threads are processes, which also look for boxes.
            mem_mb=memory(5000, row_bytes=2000, thread_mb=700),
            # Segments at three scales take a core a third of a second, and it resumes.
            runtime=minutes(15, rows_per_second=1, by_threads=True),
            max_failed=str(CONFIG.regions.max_failed),
        params:
            cfg=CONFIG.regions.for_regions(),
            embed=CONFIG.embed.for_encoder(),
            code=code_hash("regions"),
            # A function: each job reads this file, and none but this one needs them.
            tables=lambda wildcards: [file_identity(path) for path in BOX_TABLES],
            identity=regions_list_identity,
            options=regions_list_options,
            sources=lambda wildcards, input: options_of(input, "metadata", "tables", "urls"),
        shell:
            """
            mlcd regions \
                --images {input.manifest:q} \
                --embeddings {input.embeddings:q} \
                {params.sources} {params.options} \
                --output {output.regions:q} \
                --threads {threads} \
                --embed-config {params.embed:q} \
                --config {params.cfg:q} --max-failed {resources.max_failed} \
                --log {log:q}
            """

    use rule label as regions_label with:
        input:
            embeddings=f"{RESULTS}/regions/{{chunk}}.h5",
            centroids=f"{RESULTS}/clusters/centroids.h5",
        output:
            labels=f"{RESULTS}/regions/labels/{{chunk}}.h5",
        log:
            f"{RESULTS}/logs/regions/label-{{chunk}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/regions/label-{{chunk}}.tsv"
