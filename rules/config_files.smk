# The config files one by one, before Snakemake merges them: a broken one, or a key that stands twice
# in a section (YAML keeps the last and says nothing), ends the run with its file and line.

from pathlib import Path

from mlcd.config import check_shape
from mlcd.launch import snakemake as snakemake_process
from mlcd.utils.errors import UserError

# As a module of another workflow, the rules get their config from it: what its files hold besides is
# not ours to judge.
own = not workflow.modifier.skip_configfile
try:
    for path in [*workflow.config_settings.configfiles, Path("config.yaml")]:
        if own and path.exists():
            check_shape(path)
except UserError as error:
    snakemake_process.stop(str(error))
