"""Questions and orders to Slurm."""
