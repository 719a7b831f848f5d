"""The command line: every stage has help with every key; mistakes end in one line and status 2."""

import subprocess
import sys
import time

import pytest

from mlcd.cli import main
from mlcd.config import SECTIONS


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
