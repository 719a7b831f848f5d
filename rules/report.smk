# report: one page for each part of the run, shown by Snakemake's HTML report (make report).
#
# REQUIRED INPUTS  the results of the other stages, each part its own: a new probe option redraws the
#                  results and leaves the montages alone
# OUTPUTS          results/report/{part}.html
#                  results/report/config.yaml       the resolved config
#                  results/report/provenance.json   versions, revision and hashes
#                  results/report/efficiency.csv    what each job took
#                  results/report/overview.html     the run in a minute, the report's first page

#: Part → category and title in the report, and the files it is drawn from.
REPORT_PARTS = {
    "download": (
        "1 Data",
        "Download outcomes",
        {"images": of_chunks("images/{chunk}/manifest.json")},
    ),
    "curate": (
        "1 Data",
        "Images left out, and why",
        {
            "images": of_chunks("images/{chunk}/manifest.json"),
            "embeddings": of_chunks("embeddings/{chunk}.h5"),
            "rows": of_chunks("curate/rows/{chunk}.h5"),
            "curation": [f"{RESULTS}/curate/summary.json"],
        },
    ),
    "cluster": (
        "2 Clusters",
        "Objective and sizes",
        {"centroids": CENTROIDS},
    ),
    "montage": (
        "2 Clusters",
        "Images nearest to a center",
        {
            "images": of_chunks("images/{chunk}/manifest.json"),
            "embeddings": [] if OWN_LABELS else of_chunks(EMBEDDINGS),
            "labels": of_chunks("labels/{chunk}.h5"),
            "centroids": CENTROIDS,
        },
    ),
    "label": (
        "3 Labels",
        "Label use and similarity",
        {"summary": [f"{RESULTS}/labels/summary.json"]},
    ),
    "examples": (
        "3 Labels",
        "Images and their labels",
        {
            "images": of_chunks("images/{chunk}/manifest.json"),
            "embeddings": [] if OWN_LABELS else of_chunks(EMBEDDINGS),
            "labels": of_chunks("labels/{chunk}.h5"),
        },
    ),
    "train": (
        "4 Training",
        "Loss, similarity and throughput",
        {"metrics": [f"{RESULTS}/train/metrics.jsonl"]},
    ),
    "text": (
        "4 Training",
        "Text tower: loss and temperature",
        {"metrics": [f"{RESULTS}/text/metrics.jsonl"]},
    ),
    "results": (
        "5 Results",
        "All models on all data sets",
        {"scores": [f"{RESULTS}/evaluate/summary.csv"]},
    ),
    "ablate": (
        "5 Results",
        "Losses, l, r and K over seeds",
        {"ablation": [f"{ABLATE}/table.csv"], "orders": [f"{ABLATE}/orders.csv"]},
    ),
    "figures": (
        "5 Results",
        "Figures from outside of the run",
        {"figures": CONFIG.report.figures},
    ),
    "provenance": (
        "6 Provenance",
        "Config, versions and hashes",
        {
            "resolved": [f"{RESULTS}/report/config.yaml"],
            "files": [
                *CENTROIDS,
                f"{RESULTS}/labels/summary.json",
                f"{RESULTS}/train/encoder.safetensors",
                f"{RESULTS}/train/metrics.jsonl",
                f"{RESULTS}/evaluate/summary.csv",
            ],
        },
    ),
}
if CONFIG.curate.enabled:
    REPORT_PARTS["provenance"][2]["files"].append(f"{RESULTS}/curate/summary.json")
else:
    del REPORT_PARTS["curate"]
if CONFIG.ocr.enabled:
    REPORT_PARTS["provenance"][2]["files"].append(f"{RESULTS}/ocr/vocabulary.json")
if not CENTROIDS:
    del REPORT_PARTS["cluster"]
if CONFIG.cluster.centers and not KEEPS_CENTERS:
    REPORT_PARTS["provenance"][2]["files"].append(CONFIG.cluster.centers)
if OWN_FILES:
    REPORT_PARTS["provenance"][2]["own"] = [ancient(path) for path in OWN_FILES]
if not DATASETS:
    # Nothing is evaluated: neither results nor their hash.
    del REPORT_PARTS["results"]
    REPORT_PARTS["provenance"][2]["files"].remove(f"{RESULTS}/evaluate/summary.csv")
REPORT_PARTS["provenance"][2]["files"] += REGION_LAYER
if CONFIG.text.enabled:
    REPORT_PARTS["provenance"][2]["files"].append(f"{RESULTS}/text/text.safetensors")
else:
    del REPORT_PARTS["text"]
if not ABLATION:
    del REPORT_PARTS["ablate"]
if not CONFIG.report.figures:
    del REPORT_PARTS["figures"]
#: Part → the keys of the section that it depends on; the others depend on none.
REPORT_KEYS = {
    **dict.fromkeys(("curate", "montage", "examples"), section("report")),
    "figures": CONFIG.report.for_figures(),
}
REPORT_PAGES = [f"{RESULTS}/report/{part}.html" for part in REPORT_PARTS]
REPORT_FILES = [
    *REPORT_PAGES,
    f"{RESULTS}/report/efficiency.html",
    f"{RESULTS}/report/overview.html",
]
#: Files of the whole run that its first page is drawn from.
OVERVIEW_FILES = {
    **REPORT_PARTS["montage"][2],
    "summary": [f"{RESULTS}/labels/summary.json"],
    "metrics": [f"{RESULTS}/train/metrics.jsonl"],
    "scores": [f"{RESULTS}/evaluate/summary.csv"] if DATASETS else [],
    "resolved": [f"{RESULTS}/report/config.yaml"],
    "jobs": [f"{RESULTS}/report/efficiency.csv"],
}


rule report_config:
    """Store the resolved config, defaults included, beside the results."""
    output:
        f"{RESULTS}/report/config.yaml",
    log:
        f"{RESULTS}/logs/report/config.log",
    localrule: True
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
    params:
        text=CONFIG.to_yaml(),
    shell:
        "printf %s {params.text:q} > {output:q} 2> {log:q}"


for part, (category, title, files) in REPORT_PARTS.items():

    rule:
        name:
            f"report_{part}"
        input:
            **files,
        output:
            report(
                f"{RESULTS}/report/{part}.html",
                caption=f"../workflow/report/{part}.rst",
                category=category,
                labels={"page": title},
            ),
            # Numbers for programs, beside the page for people.
            [f"{RESULTS}/report/provenance.json"] if part == "provenance" else [],
            [f"{ABLATE}/plot.svg"] if part == "ablate" else [],
        log:
            f"{RESULTS}/logs/report/{part}.log",
        threads: 1
        resources:
            mem_mb=4000,
            runtime=60,
        params:
            part=f"--part {part}",
            # Figures are named by their key.
            options=as_options({n: f for n, f in files.items() if f and n != "figures"}),
            cfg=REPORT_KEYS.get(part, "{}"),
            code=code_hash("report"),
        shell:
            """
            mlcd report {params.part} {params.options} \
                --output {output:q} \
                --config {params.cfg:q} \
                --log {log:q}
            """


rule report_efficiency:
    """Tabulate what the jobs took and what they had asked for."""
    input:
        # What comes last in a run: this rule follows it, and runs again when any of it is new.
        pages=REPORT_PAGES,
        exports=expand(f"{RESULTS}/export/{{format}}/check.json", format=CONFIG.export.formats),
    output:
        page=report(
            f"{RESULTS}/report/efficiency.html",
            caption="../workflow/report/efficiency.rst",
            category="7 Cost",
            labels={"page": "Time, cores and memory by rule"},
        ),
        rows=f"{RESULTS}/report/efficiency.csv",
    log:
        f"{RESULTS}/logs/report/efficiency.log",
    # Snakemake's logs and Slurm's answers are where the run is steered from.
    localrule: True
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        folder=subpath(output.rows, ancestor=2),
        code=code_hash("report"),
    shell:
        """
        mlcd report --part efficiency \
            --folder {params.folder:q} \
            --output {output:q} \
            --log {log:q}
        """


# No report() here: Snakemake's report has it as its first page (workflow/report/workflow.rst).
rule report_overview:
    """Draw the run in a minute: the pipeline, scores, some clusters."""
    input:
        **OVERVIEW_FILES,
    output:
        f"{RESULTS}/report/overview.html",
    log:
        f"{RESULTS}/logs/report/overview.log",
    # It follows the local rule report_efficiency, and is a matter of seconds.
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        options=as_options({name: paths for name, paths in OVERVIEW_FILES.items() if paths}),
        cfg=section("report"),
        code=code_hash("report"),
    shell:
        """
        mlcd report --part overview {params.options} \
            --output {output:q} \
            --config {params.cfg:q} \
            --log {log:q}
        """
