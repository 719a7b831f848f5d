"""The cluster-discrimination losses: `mlcd` (Eq. 5), `mlc` (Eq. 4) and `single`."""

from mlcd.losses.cluster import cluster_loss
from mlcd.losses.terms import Objective

__all__ = ["Objective", "cluster_loss"]
