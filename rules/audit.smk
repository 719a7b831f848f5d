# audit: seal the finished run: every file by hash, sections and code of all stages, one identity.
#
# REQUIRED INPUTS  all that rule all asks for
# OUTPUTS          results/audit/lock.json     files, inputs, stages, and the run's identity
#                  results/audit/code.json     definitions that each stage rests on, as hashes
#                  results/audit/system.json   packages, processor, GPUs, settings
#                  results/audit/source.diff   the source tree against its revision


def sealed_stages():
    """Return section and code of all stages, as `mlcd audit seal` takes them."""
    stages = {}
    for stage in SECTIONS:
        if stage == "ablate":  # of its cells, and not of this run
            continue
        stages[stage] = {
            "section": getattr(CONFIG, stage).model_dump(mode="json"),
            "code": code_hash(stage),
        }
    return json.dumps(stages, sort_keys=True)


def identity_of_run():
    """Return the identity of the run that is sealed, for the report's first page; '' if none is."""
    try:
        # It comes first: the lock of many tars has megabytes.
        with Path(RESULTS, "audit", "lock.json").open(encoding="utf-8") as lock:
            found = re.search(r'"root": "([0-9a-f]{64})"', lock.read(200))
    except (OSError, ValueError):
        return ""
    return found[1] if found else ""


if workflow.is_main_process:
    # Read by workflow/report/workflow.rst, which Snakemake renders after the run.
    config["run_identity"] = identity_of_run()


rule audit:
    """Seal the run: all files by hash, and its identity."""
    input:
        RUN_FILES,
    output:
        lock=f"{RESULTS}/audit/lock.json",
        code=f"{RESULTS}/audit/code.json",
        system=f"{RESULTS}/audit/system.json",
        changes=f"{RESULTS}/audit/source.diff",
    log:
        f"{RESULTS}/logs/audit.log",
    # A matter of seconds, and Git is where the run is steered from.
    localrule: True
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        folder=subpath(output.lock, ancestor=2),
        # Functions: each job of a cluster parses this file, and none but this one needs them.
        stages=lambda wildcards: sealed_stages(),
        # Where files lie decides nothing: Snakemake compares no parameter that comes of resources.
        inputs=lambda wildcards, resources: files_from_outside(),
        identities=lambda wildcards: [file_identity(path) for path in files_from_outside()],
    shell:
        """
        mlcd audit seal {params.folder:q} \
            --stages {params.stages:q} \
            --inputs {params.inputs:q} \
            --log {log:q}
        """
