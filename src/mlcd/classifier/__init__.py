"""A classifier over many classes whose rows are divided over ranks, and its row-sparse AdamW."""

from mlcd.classifier.gradient import RowGradient
from mlcd.classifier.optimizer import RowSparseAdamW
from mlcd.classifier.sampler import NegativeSampler
from mlcd.classifier.sharded import ShardedClassifier, shard_bounds

__all__ = [
    "NegativeSampler",
    "RowGradient",
    "RowSparseAdamW",
    "ShardedClassifier",
    "shard_bounds",
]
