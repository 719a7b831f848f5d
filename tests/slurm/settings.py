"""The test cluster's slurm.conf and gres.conf."""

from __future__ import annotations

from pathlib import Path

_CONF = """\
ClusterName=mini
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
{security}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
# Neither cgroups nor a task plugin: containers allow neither.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
# Memory is watched by polling; a job over its limit is killed within two seconds.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=5,sched_interval=5,requeue_delay=2
# The machine's cores and memory are not what the nodes claim.
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
KillWait=5
# squeue tells of finished jobs for an hour: evidence for the tests.
MinJobAge=3600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{accounting}
GresTypes=gpu
"""

_NODE = (
    "NodeName=node{i} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 Sockets=1 "
    "CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:2\n"
)
_PARTITION = (
    "PartitionName={name} {more} Nodes=node[1-{nodes}] MaxTime=120 DefaultTime=10 "
    "DefMemPerCPU=1900 State=UP\n"
)


def slurm_conf(folder: Path, nodes: int, accounting: bool) -> str:
    """Return slurm.conf: nodes of 2 CPUs, 4000 MB and 2 GPUs; partitions main, grace and high.

    Jobs of high push those of the others off their nodes: off main at once, off grace after 20 s.
    """
    text = _CONF.format(
        folder=folder,
        security=f"AuthType=auth/munge\nAuthInfo=cred_expire=10,socket={folder}/run/munge.socket"
        if accounting
        else "AuthType=auth/none\nCredType=cred/none\nAuthInfo=cred_expire=10",
        accounting="AccountingStorageType=accounting_storage/slurmdbd\n"
        "AccountingStorageHost=localhost\n"
        f"AccountingStoragePass={folder}/run/munge.socket\n"
        "AccountingStoreFlags=job_comment"
        if accounting
        else "AccountingStorageType=accounting_storage/none",
    )
    text += "".join(_NODE.format(i=i, port=17000 + i) for i in range(1, nodes + 1))
    for name, more in [
        ("main", "Default=YES PriorityTier=1 PreemptMode=REQUEUE"),
        ("grace", "PriorityTier=1 PreemptMode=REQUEUE GraceTime=20"),
        ("high", "PriorityTier=10 PreemptMode=OFF"),
    ]:
        text += _PARTITION.format(name=name, more=more, nodes=nodes)
    return text


def gres_conf(folder: Path, nodes: int) -> str:
    """Return gres.conf: two GPUs per node, by device files (a mere count makes nodes invalid)."""
    return f"AutoDetect=off\nNodeName=node[1-{nodes}] Name=gpu File={folder}/dev/gpu[0-1]\n"
