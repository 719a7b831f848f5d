"""Scripts of benchmarks/, loaded as modules."""

import importlib.util
import sys
from types import ModuleType

from helpers.paths import ROOT


def load(name: str) -> ModuleType:
    """Run benchmarks/`name`.py as a module that others can import by its name."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


for _name in (
    "goals",
    "peers",
    "machine",
    "study",
    "scenes_rows",
    "scenes_study",
    "regions_rows",
    "regions_study",
):
    load(_name)  # which benchmarks import by its name
study = sys.modules["study"]
audit = load("audit")
plan_scale = load("plan_scale")
scenes_rows, scenes_study = (sys.modules[name] for name in ("scenes_rows", "scenes_study"))
scenes_table = load("scenes_table")
regions_rows, regions_study = (sys.modules[name] for name in ("regions_rows", "regions_study"))
regions_table = load("regions_table")
