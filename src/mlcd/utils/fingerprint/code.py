"""The code of a package: what each stage reaches, and its hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlcd.utils.fingerprint.colors import Reach
from mlcd.utils.fingerprint.definitions import Definitions
from mlcd.utils.fingerprint.graph import BOUNDARY, Graph

#: What of a stage's module is run.
_ENTRIES = ("add_arguments", "run")


class Code:
    """The code of the package whose folder is `root`, each file read once."""

    def __init__(self, root: Path, boundary: tuple[str, ...] = BOUNDARY) -> None:
        self.graph = Graph(root, boundary)
        self._definitions = Definitions(self.graph)
        self._reached: dict[str, Reach] = {}

    def reach(self, stage: str) -> Reach:
        """Return all that the results of `stage` depend on."""
        if stage not in self._reached:
            name = f"stages.{stage}"
            module = self.graph.module(name)
            if module is None:
                raise ValueError(f"{name}: no such module in {self.graph.root}")
            found = (self.graph.resolve(module, entry) for entry in _ENTRIES)
            roots = [target[1:3] for target in found if target is not None and target[0] == "node"]
            self._reached[stage] = Reach(self._definitions, roots)
        return self._reached[stage]

    def hash(self, stage: str) -> str:
        """Return a hash (hex, 16 digits) of the code that the results of `stage` depend on."""
        return self.reach(stage).hash

    def without(self, module: str) -> Code:
        """Return the code as it is after `module` was edited; all else is not read again."""
        other = Code(self.graph.root, self.graph.boundary)
        other.graph.take(self.graph, module)
        other._definitions.take(self._definitions, module)
        return other

    def record(self, stage: str) -> dict[str, Any]:
        """Return the hash of `stage` and, to name later what differs, one of each definition."""
        return {
            "stage": stage,
            "hash": self.hash(stage),
            "modules": self.reach(stage).shapes(),
        }
