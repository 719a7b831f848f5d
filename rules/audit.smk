# audit: seal the finished run: every file by hash, sections and code of all stages, one identity.
#
# REQUIRED INPUTS  all that rule all asks for
# OUTPUTS          results/audit/lock.json     files, inputs, stages, and the run's identity
#                  results/audit/code.json     definitions that each stage rests on, as hashes
#                  results/audit/system.json   packages, processor, GPUs, settings
#                  results/audit/source.diff   the source tree against its revision
#                  results/audit/rules.json    the graph of the rules
#                  results/audit/bundle.json   files of results/audit/bundle/: the run as crate, bill of
#                                              materials, signed statement, graphs
#                  results/audit/chain.html    the chain as a graph, a page of the report
#                  results/export/{format}/README.md   now names the run


rule audit:
    """Seal the run: all files by hash, and its identity."""
    input:
        RUN_FILES,
    output:
        lock=f"{RESULTS}/audit/lock.json",
        code=f"{RESULTS}/audit/code.json",
        system=f"{RESULTS}/audit/system.json",
        changes=f"{RESULTS}/audit/source.diff",
        rules=f"{RESULTS}/audit/rules.json",
        bundle=f"{RESULTS}/audit/bundle.json",
        # Not among the pages of rules/report.smk: it is of these as well.
        page=report(
            f"{RESULTS}/audit/chain.html",
            caption="../workflow/report/audit.rst",
            category="6 Provenance",
            labels={"page": "Audit: the chain of all files"},
        ),
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
        # Nor does it which of the rules a command has asked for.
        rules=lambda wildcards, resources: rule_graph("audit"),
        datasets=lambda wildcards: [
            f"{name}={layout.identity(dataset)}" for name, dataset in DATASETS.items()
        ],
        identities=lambda wildcards: [file_identity(path) for path in files_from_outside()],
    shell:
        """
        mlcd audit seal {params.folder:q} \
            --stages {params.stages:q} \
            --inputs {params.inputs:q} \
            --rules {params.rules:q} \
            --datasets {params.datasets:q} \
            --log {log:q}
        mlcd audit bundle {params.folder:q} --log {log:q}
        """
