"""`make bench`: its rows say whether a goal is met, and its scripts are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers.benchmark_scripts import load
from helpers.paths import ROOT

goals = load("goals")
bench = load("bench")


@pytest.mark.parametrize(
    ("ours", "more", "word"),
    [([1.0, 2.0, 9.0], False, "met"), ([4.0], False, "**short**"), ([4.0], True, "met"),
     ([2.0], True, "**short**")],
)  # fmt: skip
def test_a_row_compares_with_the_best_peer(capsys, ours, more, word):
    peers = {"slow": [8.0, 1.0, 9.0], "quick": [3.0, 2.0, 30.0]}
    if more:
        peers = {"slow": [1.0], "quick": [3.0]}
    assert goals.state("row", ours, peers, 1.0, more_is_better=more) is (word == "met")
    line = capsys.readouterr().out
    assert line.startswith(goals.MARK)
    assert "| quick | 3" in line
    assert line.rstrip().endswith(word)


def test_rows_are_collected_and_a_failure_is_told(capfd):
    program = "print('goal: a | b'); print('other'); raise SystemExit(3)"
    assert bench.run([sys.executable, "-c", program]) == (["a | b"], 3)
    assert "other" in capfd.readouterr().out


def test_every_benchmark_is_a_script_of_the_folder():
    for name, (script, *_) in bench.BENCHMARKS.items():
        assert (ROOT / "benchmarks" / script).is_file(), name


def test_a_difference_below_the_noise_meets_nothing(capsys):
    assert not goals.state("row", [2.0, 2.1], {"peer": [-0.3, 0.8]}, 1.0)
    assert capsys.readouterr().out.rstrip().endswith("within the noise")


def test_a_goal_may_be_a_figure(capsys):
    assert goals.state_figure("row", [310.0, 290.0, 305.0], 300, unit="images per CPU s")
    assert not goals.state_figure("row", [299.0], 300, unit="images per CPU s")
    assert capsys.readouterr().out.splitlines()[1].endswith("≥ 300 | **short**")


def test_the_machine_is_named():
    text = bench.machine.description()
    for word in ("CPU: ", "instructions: ", "BLAS: ", "torch ", "load"):
        assert word in text


def test_every_script_finds_what_it_imports():
    """Each in one fresh process after the other: a move of the code must not break them unseen."""
    scripts = sorted((ROOT / "benchmarks").glob("*.py"))
    program = (
        "import importlib.util, sys\n"
        f"sys.path[:0] = [{str(ROOT / 'benchmarks')!r}, {str(ROOT / 'src')!r}]\n"
        "import mlcd.utils.compat\n"
        f"for name in {[path.stem for path in scripts]!r}:\n"
        "    spec = importlib.util.find_spec(name)\n"
        "    module = importlib.util.module_from_spec(spec)\n"
        "    sys.modules[name] = module\n"
        "    spec.loader.exec_module(module)\n"
        "import plan\n"
        "exec(plan._TIMED.partition('start =')[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(scripts) > 20


def test_the_table_goes_between_the_marks_of_its_page(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{bench._BEGIN}\n\nold\n\n{bench._END}\n\nbehind\n")
    monkeypatch.setattr(bench, "BENCHMARKS", {"one": ["one.py"]})
    monkeypatch.setattr(bench, "run", lambda command: (["row | s"], 0))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--into", str(page)])
    assert bench.main() == 0
    text = page.read_text()
    assert "| row | s |" in text
    assert "old" not in text
    assert text.startswith("before\n") and text.endswith("behind\n")
    # A page that has no place for it, or some rows alone, is refused before any work.
    page.write_text("nothing")
    with pytest.raises(SystemExit):
        bench.main()
    assert "--into" in capsys.readouterr().err
    assert bench._parts(ROOT / "docs" / "results" / "peers.md") is not None


def test_peers_that_cannot_be_had_are_left_out(tmp_path, monkeypatch, capsys):
    peers = bench.machine.peers
    monkeypatch.setattr(peers, "FOLDER", tmp_path / "peers")
    assert "not installed" in peers.missing()
    monkeypatch.setattr(sys, "argv", ["peers.py", "--no-index"])
    peers.main()
    assert "left out: ERROR" in capsys.readouterr().out
    assert "ERROR" in peers.missing()
    # One that is there is used, until the list changes.
    (tmp_path / "peers" / "installed").write_text(f"{peers._wanted()}\n")
    assert peers.missing() == ""
    other = tmp_path / "peers.txt"
    other.write_text("litdata==0\n")
    monkeypatch.setattr(peers, "LIST", other)
    assert peers.missing()
