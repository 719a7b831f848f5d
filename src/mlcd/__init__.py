"""mlcd: train a vision encoder by Multi-Label Cluster Discrimination (ECCV 2024, arXiv 2407.17331).

One module or package per stage, in the order of the data:
prepare, download, embed, cluster, label, train, evaluate, export, report.
"""

__version__ = "0.1.0"
