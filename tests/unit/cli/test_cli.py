"""The command line: every stage has help with every key; mistakes end in one line and status 2."""

import subprocess
import sys
import time

import pytest

from mlcd.cli import main
from mlcd.commands import run
from mlcd.config import SECTIONS
from mlcd.utils.logging import LOGGER


@pytest.mark.parametrize("stage", SECTIONS)
def test_help_names_every_key(stage, capsys):
    with pytest.raises(SystemExit) as caught:
        main([stage, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for key in SECTIONS[stage].model_fields:
        assert f"--{key.replace('_', '-')}" in shown


def test_module_and_version():
    done = subprocess.run(
        [sys.executable, "-m", "mlcd", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("mlcd 0.")


@pytest.mark.parametrize("stage", SECTIONS)
def test_help_loads_nothing_heavy(stage):
    """Help, and so the Snakefile, must not wait for torch."""
    code = (
        "import sys\nfrom mlcd.cli import main\n"
        f"try: main([{stage!r}, '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'deepspeed', 'faiss', 'timm', 'open_clip', 'img2dataset'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("[]"), (done.stderr, time.monotonic() - start)


def test_a_mistake_is_one_line_without_traceback(tmp_path, capsys):
    status = main(
        ["cluster", "--embeddings", str(tmp_path / "none.h5"), "--output", str(tmp_path / "c.h5")]
    )
    shown = capsys.readouterr().err
    assert status == 2
    assert "none.h5" in shown and "Traceback" not in shown
    assert len(shown.strip().splitlines()) == 1


def test_a_wrong_value_names_the_key(tmp_path, capsys):
    status = main(["cluster", "--embeddings", "x.h5", "--output", "c.h5", "--k", "0"])
    assert status == 2
    assert "cluster.k: expected more than 0, got '0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "mlcd: no command 'trian'; did you mean train? (see mlcd --help)"),
        (["x" * 5000], "mlcd: no command 'xxx"),
        (
            ["cluster", "--embedings", "x.h5", "--output", "c.h5"],
            "mlcd: cluster: unknown option '--embedings'; did you mean --embeddings? "
            "(see mlcd cluster --help)",
        ),
        (["embed", "--images", "x"], "mlcd embed: the following arguments are required: --output"),
        (["label", "--device", "x"], "mlcd label: argument --device: invalid choice: 'x'"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_nearest(words, told, capsys, monkeypatch):
    monkeypatch.setattr(LOGGER, "handlers", [])  # of tests before this one
    try:
        status = main(words)
    except SystemExit as end:
        status = end.code
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2 and line.startswith(told) and len(line) < 300


def test_help_begins_with_what_is_needed(capsys):
    with pytest.raises(SystemExit):
        main(["label", "--help"])
    usage, _, about, *rest = capsys.readouterr().out.splitlines()
    assert usage == "usage: mlcd label --output FILE [options]"
    assert about.startswith("Give every image") and "files and resources:" in rest[:4]


def test_the_program_alone_shows_its_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    shown = capsys.readouterr().out
    assert shown.startswith("usage: mlcd COMMAND [options]\n")
    assert all(f"    {name} " in shown for name in SECTIONS)


def test_run_passes_on_every_word(monkeypatch):
    """The word `--` too: Snakemake needs it between the files of --configfile and a target."""
    words = ["-n", "--configfile", "a.yaml", "--", "a/b"]
    monkeypatch.setattr(run, "run", lambda arguments, section: passed.append(arguments.arguments))
    passed = []
    assert main(["run", *words]) == 0 and passed == [words]


def test_a_reader_that_has_seen_enough_is_no_failure():
    """As `mlcd audit explain … | head`: what was printed is more than a pipe holds."""
    program = (
        "import argparse, sys\n"
        "from mlcd import cli\n"
        "from mlcd.commands import status\n"
        "def run(arguments, section):\n"
        "    for number in range(100_000):\n"
        "        print('line', number, flush=True)\n"
        "status.run = run\n"
        "sys.exit(cli.main(['status']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
