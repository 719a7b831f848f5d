# ocr: words in images, as labels of a second head of the training. Part of a run where the config says
# ocr.enabled; the training takes them where train.ocr_weight is over 0.
#
# REQUIRED INPUTS  results/images/{chunk}/manifest.json and the tars it names;
#                  results/embeddings/{chunk}.h5 (of a curated run the kept ones; of own labels these)
# OUTPUTS          results/ocr/text/{chunk}.h5      lines of text in the images
#                  results/ocr/vocabulary.json      words that are classes
#                  results/ocr/labels/{chunk}.h5    words of each image

#: What says which images are read, and where they lie: their rows are those of the labels.
OCR_ROWS = "labels/{chunk}.h5" if OWN_LABELS else EMBEDDINGS
#: The words that the training takes as labels, of all chunks; none where it has no such head.
OCR_LABELS = of_chunks("ocr/labels/{chunk}.h5") if CONFIG.train.ocr_weight else []


rule ocr_text:
    """Read the text in the images of {wildcards.chunk}."""
    input:
        rows=f"{RESULTS}/{OCR_ROWS}",
        manifest=f"{RESULTS}/images/{{chunk}}/manifest.json",
    output:
        text=f"{RESULTS}/ocr/text/{{chunk}}.h5",
    log:
        f"{RESULTS}/logs/ocr/text-{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/ocr/text-{{chunk}}.tsv"
    threads: 2
    resources:
        mem_mb=memory(2000, row_bytes=1000, thread_mb=1500),
        # It resumes after its last whole part, in the next attempt too.
        runtime=minutes(30, rows_per_second=1, by_threads=True),
        max_failed=str(CONFIG.ocr.max_failed),
    params:
        cfg=CONFIG.ocr.for_text(),
        code=code_hash("ocr"),
    shell:
        """
        mlcd ocr --part text \
            --rows {input.rows:q} \
            --images {input.manifest:q} \
            --output {output.text:q} \
            --threads {threads} \
            --config {params.cfg:q} --max-failed {resources.max_failed} \
            --log {log:q}
        """


rule ocr_vocabulary:
    """Find over all chunks the words that are classes."""
    input:
        text=of_chunks("ocr/text/{chunk}.h5"),
    output:
        vocabulary=f"{RESULTS}/ocr/vocabulary.json",
    log:
        f"{RESULTS}/logs/ocr/vocabulary.log",
    benchmark:
        f"{RESULTS}/benchmarks/ocr/vocabulary.tsv"
    threads: 1
    resources:
        # Each different word is held, some 200 bytes of it.
        mem_mb=memory_for_all(2000, row_bytes=200),
        runtime=240,
    params:
        cfg=CONFIG.ocr.for_vocabulary(),
        code=code_hash("ocr"),
    shell:
        """
        mlcd ocr --part vocabulary \
            --text {input.text:q} \
            --output {output.vocabulary:q} \
            --config {params.cfg:q} \
            --log {log:q}
        """


rule ocr_labels:
    """Take the words of the images of {wildcards.chunk} as labels."""
    input:
        text=f"{RESULTS}/ocr/text/{{chunk}}.h5",
        vocabulary=f"{RESULTS}/ocr/vocabulary.json",
    output:
        labels=f"{RESULTS}/ocr/labels/{{chunk}}.h5",
    log:
        f"{RESULTS}/logs/ocr/labels-{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/ocr/labels-{{chunk}}.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000, row_bytes=1000),
        runtime=minutes(15, rows_per_second=2000),
    params:
        cfg=CONFIG.ocr.for_labels(),
        code=code_hash("ocr"),
    shell:
        """
        mlcd ocr --part labels \
            --text {input.text:q} \
            --vocabulary {input.vocabulary:q} \
            --output {output.labels:q} \
            --config {params.cfg:q} \
            --log {log:q}
        """


#: What a run with the stage asks for by name.
OCR_FILES = [
    *of_chunks("ocr/text/{chunk}.h5"),
    *of_chunks("ocr/labels/{chunk}.h5"),
    f"{RESULTS}/ocr/vocabulary.json",
]
