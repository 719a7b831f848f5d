"""The tests mirror src/mlcd, share code through helpers alone, and the package's root is small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from helpers.paths import ROOT

TESTS, SOURCE = ROOT / "tests", ROOT / "src" / "mlcd"
MODULES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py"))
FOLDERS = sorted(
    {path.parent.relative_to(TESTS / "unit").as_posix() for path in TESTS.glob("unit/*/**/*.py")}
)


def imported(path: Path) -> set[str]:
    """Return the parts of the names that a file imports: a, b, c of ``from a.b import c``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.update((node.module or "").split("."))
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.update(part for alias in node.names for part in alias.name.split("."))
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_of_unit_tests_is_named_as_what_it_tests(folder):
    assert (SOURCE / folder / "__init__.py").exists() or (SOURCE / f"{folder}.py").exists()


def test_every_package_has_tests():
    packages = {path.parent.relative_to(SOURCE).as_posix() for path in SOURCE.glob("*/__init__.py")}
    packages |= {f"stages/{path.parent.name}" for path in SOURCE.glob("stages/*/__init__.py")}
    untested = {name for name in packages if not list((TESTS / "unit" / name).rglob("test_*.py"))}
    # mlcd.slurm asks Slurm's programs: launch/test_driver.py has scripts answer, tests/slurm asks.
    assert untested == {"slurm"}


def test_no_test_module_is_imported():
    names = {Path(module).stem for module in MODULES} | {"conftest"}
    found = {str(path): imported(path) & names for path in TESTS.rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == {}


def test_helpers_hold_no_test():
    helpers = sorted((TESTS / "helpers").rglob("*.py"))
    assert len(helpers) > 10
    for path in helpers:
        assert not path.name.startswith("test_") and path.name != "conftest.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert not [name for name in defined if name.startswith("test_")], path.name


def test_test_modules_lie_in_folders():
    """Beside this one there is none at the root of the tests or of the unit tests."""
    assert [name for name in MODULES if Path(name).parent.as_posix() in (".", "unit")] == [
        "unit/test_layout.py"
    ]


def test_no_file_is_longer_than_400_lines():
    folders = ("benchmarks", "demo", "docs", "rules", "src", "tests", "workflow")
    files = [path for name in folders for path in (ROOT / name).rglob("*")
             if path.suffix in (".py", ".smk") and ".snakemake" not in path.parts]  # fmt: skip
    assert len(files) > 500
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {str(path): count for path, count in lines.items() if count > 400} == {}


def test_the_packages_root_holds_the_command_line_alone():
    assert {path.name for path in SOURCE.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py"}
