"""Look at the clusters of a run."""
