"""The cluster-discrimination losses: `mlcd` (Eq. 5), `mlc` (Eq. 4) and `single`."""

from mlcd.losses.objective import Objective
from mlcd.losses.single_process import cluster_loss

__all__ = ["Objective", "cluster_loss"]
