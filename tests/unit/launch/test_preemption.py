"""Warnings of preemption."""

import shlex
import subprocess

from mlcd.launch import preemption

_WARNED = """
import os, signal, threading, time
assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
os.kill(os.getpid(), signal.SIGUSR2)
from mlcd.launch import preemption
requeued = threading.Event()
preemption.listen(requeued.set, 60)
print(requeued.wait(30), preemption.stop_asked(), flush=True)
"""


def test_a_warning_before_a_rank_listens_is_not_lost():
    command = f"{preemption.python()} -c {shlex.quote(_WARNED)}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True True\n", done
