"""Where the ranks of a Slurm job meet."""

from mlcd.launch.jobs_slurm import meeting_port


def test_the_ranks_of_a_slurm_job_meet_below_the_ports_of_outgoing_connections(monkeypatch):
    found = set()
    for job in range(50):
        for restarts in ("0", "1"):
            monkeypatch.setenv("SLURM_JOB_ID", str(job))
            monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
            port = meeting_port()
            assert port == meeting_port()
            assert 20_000 <= port < 32_768
            found.add(port)
    # Another start, another port: the old one may still be held.
    assert len(found) > 95
