"""A rank of a local gang: `python -m mlcd.launch.rank_local FOLDER`, started by the controller."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mlcd.launch.call import Call
from mlcd.launch.rank import Rank


class LocalRank(Rank):
    """A rank on this machine; its controller has set its place, and this process ends with it."""

    def take_place(self) -> int:
        return int(os.environ["RANK"])


if __name__ == "__main__":
    where = Path(sys.argv[1])
    LocalRank(Call.read(where), where)()
