"""Draw docs/ablation.svg from the table of docs/results/ablations.md, as the report draws a run's:

python docs/draw_ablation.py
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlcd.cli import main
from mlcd.utils.records import write_csv

HERE = Path(__file__).parent
PAGE, OUTPUT = HERE / "results" / "ablations.md", HERE / "ablation.svg"
#: Columns of the page's table with a mean and half of its interval → names of the metrics.
METRICS = {2: "knn_20", 4: "linear_probe"}
COLUMNS = (
    "name", "loss", "l", "r", "K", "dataset", "metric", "seeds", "mean", "half_width", "reference",
    "difference", "difference_half_width",
)  # fmt: skip
ORDERS = (
    "first", "second", "dataset", "metric", "difference", "half_width", "paired_seeds", "verdict",
    "paper_first", "paper_second",
)  # fmt: skip
_CELL = re.compile(r"(mlcd|mlc|single)-l(\d+)-r([\d.]+)-k(\d+)")


def rows(page: str) -> Iterator[tuple[object, ...]]:
    """Iterate over the rows of ablate's table.csv that the page's first table holds."""
    _, _, table = page.partition("\n| | seeds |")
    for line in table.partition("\n\n")[0].splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found = _CELL.fullmatch(cells[0])
        for column, metric in METRICS.items():
            mean, half = cells[column].split(" ± ")
            yield (cells[0], *(found.groups() if found else ("", "", "", "")), "fashion-mnist",
                   metric, cells[1], mean, half, "", "", "")  # fmt: skip


def draw(output: Path) -> None:
    """Write the chart."""
    with tempfile.TemporaryDirectory() as folder:
        table, orders = Path(folder, "table.csv"), Path(folder, "orders.csv")
        write_csv(table, COLUMNS, rows(PAGE.read_text(encoding="utf-8")))
        write_csv(orders, ORDERS, ())
        words = ["--ablation", str(table), "--orders", str(orders), "--output", str(output)]
        if main(["report", "--part", "ablate", *words]):
            sys.exit(1)


if __name__ == "__main__":
    draw(OUTPUT)
