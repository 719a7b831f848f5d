"""`mlcd cluster --plan`: arithmetic held to the formulas, times to a run."""

from __future__ import annotations

import h5py
import pytest

from helpers import builders
from helpers.cluster_runs import files_of
from helpers.refusals import refused
from mlcd import cli
from mlcd.commands.plan import cluster_cost as cost
from mlcd.commands.plan.cluster_cost import Problem, phases, plan
from mlcd.config import Cluster
from mlcd.neighbors.memory import Blocks, resident
from mlcd.utils.units import parse_size

GIB = 1 << 30


def test_laion_on_gpus_follows_the_formulas() -> None:
    section = Cluster(k=1_000_000, iterations=20)
    problem = Problem(389_737_314, 768, 2, 8)
    found = plan(problem, section, [], 64 * GIB, 8, 1e13)
    assert found.flop == pytest.approx(20 * 2 * 389_737_314 * 768 * 1e6)
    assert found.bytes_read == 21 * 389_737_314 * 768 * 2
    assert not found.keep
    # Products, and each rank's reading of its rows; what the hosts do beside is far less.
    cpu, first = found.seconds["first centers"]
    assert cpu == first > 0
    least = found.flop / 8 / 1e13
    assert least < found.wall - first < 1.1 * least
    assert 19.5 < (found.wall - first) / found.longest < 20.5
    assert 10 * GIB < found.memory < 40 * GIB
    ten = plan(Problem(problem.n, 768, 2, 80), section, [], 64 * GIB, 8, 1e13)
    # Saving the centers, timed here, does not become less.
    assert ten.seconds["exact"][1] == pytest.approx(found.seconds["exact"][1] / 10, rel=0.5)
    assert ten.seconds["first centers"][1] < first / 3


def test_products_of_half_precision_leave_the_host_to_read(capsys) -> None:
    section = Cluster(k=1_000_000, iterations=20)
    problem = Problem(389_737_314, 768, 2, 80)
    full, small = (plan(problem, section, [], 64 * GIB, 8, 6e14, memory) for memory in (80e9, 24e9))
    # 7.5 GB of rows beside 4.6 GB of centers, 6.1 GB of sums and blocks: 24 GB are too few for all.
    assert full.bytes_read == 2 * problem.n * 768 * 2
    # The rest of the plan is timed on this machine.
    assert full.seconds.keys() == small.seconds.keys()
    words = ["cluster", "--plan", "--rows", "99999", "--dim", "64", "--k", "99", "--gpu", "h100"]
    for products, share in (("auto", "60% of the half-precision"), ("float32", "50% of the float")):
        assert cli.main([*words, "--products", products]) == 0
        assert share in capsys.readouterr().out


def test_two_level_passes_cost_the_root_of_k() -> None:
    section = Cluster(k=1_000_000, mode="two_level", iterations=10, refinements=3, probes=4)
    coarse, within, refine = phases(section)
    assert (coarse.products, within.products, refine.products) == (1000, 2000, 5000)
    assert [part.passes for part in (coarse, within, refine)] == [10, 10, 3]
    exact = section.model_copy(update={"probes": 0})
    assert phases(exact)[-1].products == 1_000_000


@pytest.mark.parametrize(("groups", "expected"), [(0, 0), (1, 1), (20, 5)])
def test_groups_of_the_sample_are_those_asked_for(groups: int, expected: int) -> None:
    section = Cluster(k=64, mode="two_level", groups=groups, iterations=1, refinements=0)
    timing = cost._timed(Problem(2000, 8, 2, 1), section, [], Blocks(1000, True), 1, 16)
    assert timing.section.groups == expected
    # Reading the first centers is told apart from what does not grow with the rows.
    assert timing.taken[0] > 0


@pytest.mark.parametrize("mode", ["exact", "two_level"])
def test_plan_tells_of_what_the_run_then_does(tmp_path, capsys, mode: str) -> None:
    """How near its time is to a run's, benchmarks/plan.py measures: tests are not timed."""
    files = files_of(tmp_path, builders.unit_vectors(30_000, 32, groups=500))
    options = ["--k", "900", "--iterations", "4", "--refinements", "2", "--mode", mode]
    words = ["cluster", "--embeddings", str(files[0]), "--threads", "1", *options]
    assert cli.main([*words, "--plan"]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("expected time"))
    assert float(line.split("(")[1].split()[0]) > 0
    assert not (tmp_path / "c.h5").exists()
    assert cli.main([*words, "--output", str(tmp_path / "c.h5")]) == 0
    with h5py.File(tmp_path / "c.h5") as store:
        assert store["centroid"].shape == (900, 32)
    assert "rows kept in memory" in said
    assert "30,000 of 32 dimensions" in said


def test_files_of_float32_are_read_at_four_bytes(tmp_path, capsys) -> None:
    vectors = builders.unit_vectors(4000, 64)
    words = ["cluster", "--plan", "--k", "9", "--gpu", "a100", "--embeddings"]
    for name, kind in (("half", "f2"), ("single", "f4")):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["embedding"] = vectors.astype(kind)
        assert cli.main([*words, str(tmp_path / f"{name}.h5")]) == 0
    read = [line for line in capsys.readouterr().out.splitlines() if "bytes read" in line]
    # Once for the first centers, once to keep the rows.
    half, single = (parse_size(" ".join(line.split()[2:4])) for line in read)
    assert half == 2 * 2 * vectors.size
    assert single == pytest.approx(2 * half, rel=0.03)  # shown with one digit after the point


def test_rows_kept_are_read_once_on_a_gpu_too() -> None:
    section = Cluster(k=1000, iterations=50)
    kept, streamed = (
        plan(Problem(300_000, 512, 2, 1), section, [], resident() + room, 1, 1e16)
        for room in (2 * GIB, GIB // 4)
    )
    assert kept.keep and not streamed.keep
    assert kept.cpu < 0.8 * streamed.cpu


def test_memory_limit_decides_whether_rows_are_kept() -> None:
    section = Cluster(k=1000, iterations=2)
    large = plan(Problem(3_000_000, 512, 2, 1), section, [], 2 * GIB, 1, 1e13)
    assert not large.keep
    assert large.memory < 2 * GIB + 4 * 1000 * 512
    small = plan(Problem(300_000, 512, 2, 1), section, [], 2 * GIB, 1, 1e13)
    assert small.keep
    assert small.bytes_read == 2 * 300_000 * 512 * 2 < large.bytes_read


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rows", 10], ["--dim", "needs it"]),
        (["--dim", 10], ["--rows", "needs it"]),
        (["--rows", 10, "--dim", 8, "--k", 20], ["cluster.k", "20 clusters of 10 rows"]),
        (["--rows", 99, "--dim", 8, "--k", 9, "--gpu", "abacus"], ["--gpu", "'abacus'", "a100"]),
        (["--rows", 99, "--dim", 8, "--k", 9, "--flops", -1], ["--flops", "1e13"]),
        (["--rows", 99, "--dim", 8, "--k", 9, "--products", "float16"], ["--products", "--gpu"]),
        (["--rows", 99, "--dim", 8, "--k", 9, "--device", "cuda"], ["--device", "--gpu"]),
        (
            [
                "--rows",
                10**7,
                "--dim",
                512,
                "--k",
                40_000,
                "--init",
                "kmeans++",
                "--gpu",
                "a100",
                "--memory-limit",
                "1GiB",
            ],
            ["cluster.init", "kmeans++ holds 800000 rows"],
        ),
    ],
)
def test_what_a_plan_lacks_is_named(capsys, options: list, words: list[str]) -> None:
    assert cli.main(["cluster", "--plan", *map(str, options)]) == 2
    refused(capsys, *words)


def test_files_and_output_are_still_needed_to_cluster(tmp_path, capsys) -> None:
    assert cli.main(["cluster", "--output", str(tmp_path / "c.h5")]) == 2
    refused(capsys, "--embeddings", "--plan")
    files = files_of(tmp_path, builders.unit_vectors(20, 8))
    assert cli.main(["cluster", "--embeddings", str(files[0]), "--k", "3"]) == 2
    refused(capsys, "--output", "needed")
