"""`mlcd init DIR`: a new project folder, in which `mlcd run` works without a checkout.

It holds a config.yaml of what is most often set, or a preset, and profiles to be changed. The
Snakefile and rules are mlcd's own. Nothing that is already there is replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from mlcd.config.generate import project_yaml
from mlcd.data.url_lists import expand_lists
from mlcd.utils import project
from mlcd.utils.errors import UserError
from mlcd.utils.files import checked_folder, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder, where the images are, profiles and preset."""
    parser.add_argument("folder", metavar="DIR", help="the new project folder, made if missing")
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="FOLDER",
        help="folders of images: become metadata of config.yaml",
    )  # fmt: skip
    parser.add_argument(
        "--list", nargs="+", default=[], metavar="FILE", dest="lists",
        help="URL lists (parquet, csv, tsv, txt) or patterns: become metadata of config.yaml",
    )  # fmt: skip
    parser.add_argument(
        "--profile", nargs="+", default=["local"], metavar="NAME",
        help=f"profiles to write: {', '.join(project.profiles())} [local]",
    )  # fmt: skip
    parser.add_argument(
        "--preset", default="", metavar="NAME",
        help="begin with a preset, of the paper or small: " + ", ".join(project.presets()),
    )  # fmt: skip


def run(arguments: argparse.Namespace, section: None) -> None:
    """Write the folder and say what next. Raises :class:`UserError` before writing anything."""
    folder = checked_folder(arguments.folder)
    metadata = [
        *(_relative(path, folder, "--images", os.path.exists) for path in arguments.images),
        *(_relative(path, folder, "--list", _is_list) for path in arguments.lists),
    ]
    files = {folder / "config.yaml": _config(arguments.preset, metadata)}
    for name in arguments.profile:
        source = _known("--profile", name, project.profiles(), project.PROFILES / name)
        path = folder / "profiles" / name / "config.yaml"
        files[path] = (source / "config.yaml").read_text(encoding="utf-8")
    for path in files:
        if path.exists() or path.is_symlink():
            raise UserError(f"{path}: is already there and is not replaced; name another folder")
    for path, text in files.items():
        write_text(path, text)
    _say_what_next(folder, arguments.profile, bool(metadata))


def _relative(text: str, folder: Path, option: str, fits: Callable[[str], bool]) -> str:
    """Return a path as config.yaml names it: relative if it lies in the project folder."""
    if not text or not fits(text):
        raise UserError(f"{option} {text}: no such {'file' if option == '--list' else 'folder'}")
    found, root = Path(text).absolute(), folder.absolute()
    return str(found.relative_to(root) if found.is_relative_to(root) else found)


def _is_list(text: str) -> bool:
    """True for a file, and for a pattern that names files alone."""
    return all(Path(name).is_file() for name in expand_lists([text]))


def _config(preset: str, metadata: list[str]) -> str:
    """Return the text of config.yaml."""
    if not preset:
        return project_yaml(metadata) if metadata else project_yaml()
    path = _known("--preset", preset, project.presets(), project.PRESETS / f"{preset}.yaml")
    # Its command names the preset's own place.
    lines = [line for line in path.read_text("utf-8").splitlines() if "# Command " not in line]
    text = "\n".join(lines) + "\n"
    if not metadata:
        return text
    given = f"metadata: {json.dumps(metadata, ensure_ascii=False)}"
    return re.sub(r"^metadata:.*$", lambda _: given, text, flags=re.M)


def _known(option: str, name: str, known: Iterable[str], path: Path) -> Path:
    if name not in known:
        raise UserError(f"{option} {name}: no such name; there are {', '.join(known)}")
    return path


def _say_what_next(folder: Path, profiles: list[str], has_images: bool) -> None:
    """Print three lines: what to edit, how to look, how to run."""
    config = str(folder / "config.yaml")
    edit = [config if has_images else f"{config} (metadata: where the images are)"]
    edit += [
        f"{folder / 'profiles' / name / 'config.yaml'} (its first block)"
        for name in profiles
        if name != "local"
    ]
    run = f"mlcd run --profile profiles/{profiles[0]}"
    look = f"{run} --dry-run" if profiles[0] == "local" else f"mlcd doctor --profile {profiles[0]}"
    enter = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    print(f"1. Read and edit {' and '.join(edit)}.")
    print(f"2. {enter}{look}")
    print(f"3. {run}")
