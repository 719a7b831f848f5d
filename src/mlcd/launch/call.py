"""What every rank of a gang is to do."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlcd.utils.files import write_json

_NAME = "call.json"


@dataclasses.dataclass(frozen=True)
class Call:
    """`function(**kwargs)`, named `stage` in logs and records.

    To travel to other processes the function must be importable by name, and the arguments JSON
    values.
    """

    function: Callable[..., Any]
    kwargs: dict[str, Any]
    stage: str

    def write(self, folder: Path) -> None:
        """Write the call into a gang's `folder`. Raises :class:`TypeError` if it cannot travel."""
        module, name = self.function.__module__, self.function.__qualname__
        if module == "__main__" or "<" in name:
            raise TypeError(f"{module}.{name}: not importable by name")
        values = {"module": module, "name": name, "kwargs": self.kwargs, "stage": self.stage}
        write_json(folder / _NAME, values)

    @classmethod
    def read(cls, folder: Path) -> Call:
        """Return the call of a gang's `folder`."""
        values = json.loads((folder / _NAME).read_text())
        function: Any = importlib.import_module(values["module"])
        for name in values["name"].split("."):
            function = getattr(function, name)
        return cls(function, values["kwargs"], values["stage"])
