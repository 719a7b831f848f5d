"""The simulated run of LAION's size is one that can be sealed and verified."""

from __future__ import annotations

from helpers.benchmark_scripts import audit
from mlcd import cli
from mlcd.commands.audit.nodes import collect


def test_a_simulated_run_is_sealed_and_holds(tmp_path, capsys):
    results = tmp_path / "results"
    audit.write(results, 3, 7)
    nodes, problems, others = collect(results)
    assert (problems, others) == ([], [])
    assert sum(path.endswith(".tar") for path in nodes) == 7
    assert cli.main(["audit", "seal", str(results)]) == 0
    assert cli.main(["audit", "verify", str(results)]) == 0
    assert "chain: holds" in capsys.readouterr().out
