"""Centers that are given and stay as they are: nothing is clustered."""

from __future__ import annotations

import json
from pathlib import Path

from mlcd.config import Cluster
from mlcd.data import centroids
from mlcd.launch import lease
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_text
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.logging import LOGGER


def keep(section: Cluster, output: Path, iterations: Path) -> None:
    """Write the centers of `section.centers` to `output`, and `iterations` without a line.

    What stage cluster said of them (sizes, objective, model) is kept; of other programs' centers
    sizes are 0, not known. Raises :class:`UserError` if they are not K, or one is unusable.
    """
    assert section.centers is not None, "centers are given"
    found = centroids.Centroids(section.centers)
    if section.k != found.K:
        raise UserError(
            f"cluster.centers: {section.centers} has {found.K} centers, and cluster.k is "
            f"{section.k}; set it to that"
        )
    if Path(section.centers).resolve() == output.resolve():
        raise UserError(f"cluster.centers: {output} is the output too; they are there already")
    # Where the file lies decides nothing.
    named = {"k": section.k, "centers": found.fingerprint}
    files = [output, iterations]
    with lease.writing(output, code_hash("cluster"), named, files=files) as wanted:
        if not wanted:
            return
        write_text(iterations, "")
        centroids.write(
            output,
            centroid=found.array,
            size=found.sizes,
            objective=found.objective,
            empty=found.empty,
            attributes={
                "model": found.model,
                "embeddings": found.embeddings,
                "section": json.dumps(named, sort_keys=True),
            },
        )
    LOGGER.info("cluster: %d centers of %s are kept as they are", found.K, section.centers)
