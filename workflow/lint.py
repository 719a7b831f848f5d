"""`snakemake --lint` without its wish for a conda environment or container per rule.

All rules run in the environment that runs Snakemake (.snakemake-workflow-catalog.yml says why), and
Snakemake offers no way to leave one check out (snakemake/snakemake issue 2085). All other checks
count.
"""

from __future__ import annotations

import sys

from snakemake.cli import main
from snakemake.linting.rules import RuleLinter

del RuleLinter.lint_missing_software_definition
main(["--lint", *sys.argv[1:]])
