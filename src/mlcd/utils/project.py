"""Where the workflow's own files lie, and which Snakefile belongs to a folder.

A wheel holds workflow/, rules/ and profiles/ of the repository below mlcd/_project
(pyproject.toml). Run from a checkout, the repository's own are found. The demo is in the repository
alone.
"""

from __future__ import annotations

from pathlib import Path

#: Names under which Snakemake looks for a Snakefile; its own list takes a second to import.
_SNAKEFILES = ("Snakefile", "snakefile", "workflow/Snakefile", "workflow/snakefile")


def _root() -> Path:
    package = Path(__file__).resolve().parents[1]
    packed = package / "_project"
    return packed if packed.is_dir() else package.parents[1]


#: Give it to `module: snakefile:` of another workflow, as text.
SNAKEFILE = _root() / "workflow" / "Snakefile"
#: One folder per profile, and one YAML file per preset: a config of a run of the paper.
PROFILES = _root() / "profiles"
PRESETS = _root() / "workflow" / "presets"
#: A profile of the repository alone, for its tests.
_OF_TESTS = "test"


def profiles() -> list[str]:
    """Return the names of the profiles, sorted."""
    names = (path.parent.name for path in PROFILES.glob("*/config.yaml"))
    return sorted(name for name in names if name != _OF_TESTS)


def presets() -> list[str]:
    """Return the names of the presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def own_snakefile(folder: Path) -> Path | None:
    """Return the Snakefile in `folder` that Snakemake would find, or None."""
    return next((folder / name for name in _SNAKEFILES if (folder / name).is_file()), None)


def snakefile_of(folder: Path) -> Path | None:
    """Return the Snakefile of `folder`, that of mlcd if it is a project folder, or None.

    A project folder, as `mlcd init` makes it, has a config.yaml and profiles.
    """
    if own := own_snakefile(folder):
        return own
    is_project = (folder / "config.yaml").is_file() and (folder / "profiles").is_dir()
    return SNAKEFILE if is_project else None


def has_rules(snakefile: Path) -> bool:
    """True if a Snakefile is that of mlcd, of this or another copy of the repository."""
    return (snakefile.absolute().parent.parent / "rules" / "config_files.smk").is_file()
