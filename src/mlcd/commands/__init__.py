"""Programs beside the stages: `mlcd doctor`, `run`, `encode`, `search`, `checkpoint`."""
