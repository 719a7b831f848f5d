"""Layers: an arrow between modules only points downward, and a wrong one is reported."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LINT = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with the pyproject.toml and the sources of `folder`."""
    return subprocess.run(
        [sys.executable, "-c", _LINT, "--no-cache", "--no-logo"],
        cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "COLUMNS": "200"},
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    """A copy of the sources, to put a wrong import into."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        ROOT / "src" / "mlcd", tmp_path / "src" / "mlcd",
        ignore=lambda folder, names: [
            name for name in names if not (name.endswith(".py") or (Path(folder) / name).is_dir())
        ],
    )  # fmt: skip
    return tmp_path


def test_layers_stages_and_circles_are_kept(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 3 kept, 0 broken." in done.stdout


@pytest.mark.parametrize(
    "module, code, told",
    [
        pytest.param(
            "utils/units.py",
            "def f():\n    from mlcd.stages.cluster import kmeans\n",
            "mlcd.utils.units -> mlcd.stages.cluster",
            id="upward, inside a function",
        ),
        pytest.param(
            "losses/objective.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mlcd.models.vit\n",
            "mlcd.losses.objective -> mlcd.models.vit",
            id="upward, for type checking alone",
        ),
        pytest.param(
            "models/vit.py",
            "def f():\n    import mlcd.neighbors.rows\n",
            "mlcd.models.vit -> mlcd.neighbors.rows",
            id="beside, where a bar separates two rooms",
        ),
        pytest.param(
            "stages/label/nearest.py",
            "def f():\n    import mlcd.stages.cluster.kmeans\n",
            "mlcd.stages.label.nearest -> mlcd.stages.cluster.kmeans",
            id="from stage to stage",
        ),
        pytest.param(
            "stages/cluster/sums.py",
            "def f():\n    import mlcd.stages.cluster.update\n",
            "No circle of imports, in no package BROKEN",
            id="a circle inside a package",
        ),
        pytest.param("new.py", "", "new", id="a module without a layer"),
    ],
)
def test_a_forbidden_import_is_reported(copy, module, code, told):
    path = copy / "src" / "mlcd" / module
    path.write_text((path.read_text() if path.exists() else "") + "\n\n" + code)
    done = lint(copy)
    assert done.returncode == 1
    assert told in done.stdout
