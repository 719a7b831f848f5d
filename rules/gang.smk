# What rules share whose work is a gang of ranks: rules/cluster.smk, train.smk and text.smk.
#
# Such a rule starts all ranks through submitit, here or as one Slurm job (resource launcher), waits,
# and shows what rank 0 says. Where and how wide it runs are resources, which a profile sets
# (profiles/slurm) and which make nothing stale. The rule adds ranks_per_node, threads_per_rank and
# mem_mb, and hands params.gang to its stage.

from mlcd.utils.device import gpus_here

#: Resources with the same default in every gang.
GANG = {
    "launcher": "local",
    "nodes": 1,
    # auto is judged on the machine that runs the rule: a login node may have no GPU.
    "device": "auto",
    # Of the Slurm job: time limit in minutes, partition, account, starts after the first.
    "runtime": 1440,
    "slurm_partition": "",
    "slurm_account": "",
    "requeues": 50,
    # Further options of the launcher, such as --slurm-option constraint=a100.
    "launch_options": "",
}
#: GPUs of this machine, of which a rank that runs here has its own.
GPUS_HERE = gpus_here()
#: What a batch must be divided by: ranks, then the micro-batches of a rank's share.
BATCH_RESOURCES = ("nodes", "ranks_per_node", "micro_batch")
#: Option of the launcher → the resource that it is set by; mem_mb is per node.
GANG_OPTIONS = {
    "launcher": "launcher",
    "nodes": "nodes",
    "ranks-per-node": "ranks_per_node",
    "threads": "threads_per_rank",
    "device": "device",
    "mem-mb": "mem_mb",
    "timeout-min": "runtime",
    "requeues": "requeues",
    "partition": "slurm_partition",
    "account": "slurm_account",
}


def ranks_here(batch):
    """Return the ranks of a training on this machine: one per GPU, as many as divide the batch.

    Without a GPU two, which is enough to do all that ranks do. A profile for a cluster sets them.
    """
    return max((n for n in range(1, GPUS_HERE + 1) if batch % n == 0), default=2)


def gang_options(wildcards, resources):
    """Return the launcher's options. Snakemake compares no parameter that comes of resources."""
    words = [f"--{option}={resources[name]}" for option, name in GANG_OPTIONS.items()]
    return f"{shlex.join(words)} {resources.launch_options}".strip()


def check_batches():
    """Stop before any work if a batch cannot be divided over the ranks that the profile gives."""
    for name in ("train", "text"):
        if name == "text" and not CONFIG.text.enabled:
            continue
        # A workflow that imports the rules may rename them, or leave one out.
        own_name = workflow.modifier.modify_rulename(name)
        if not workflow.is_rule(own_name):
            continue
        found = workflow.get_rule(own_name).resources
        asked = [found[key].value if key in found else 0 for key in BATCH_RESOURCES]
        # auto: a divisor of the share, whatever the ranks choose.
        asked = [0 if number == "auto" else number for number in asked]
        # A resource may be an expression, which has a value in the job only.
        if not all(isinstance(number, int) for number in asked):
            continue
        batch = getattr(CONFIG, name).batch_size
        if problem := at_start.batch_problem(batch, *asked):
            snakemake_process.stop(f"{name}.batch_size: {problem} (profile: set-resources)")
