"""`mlcd <stage>`: every stage as a program, with every key of its config section as an option.

A stage module (`mlcd.<stage>`) offers two functions and imports nothing heavy at its top:

    add_arguments(parser)   its files and how wide it runs
    run(arguments, section) its work; raises UserError for what the user can mend
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import typing
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from mlcd import __version__
from mlcd.config import SECTIONS, parse_section
from mlcd.errors import UserError
from mlcd.progress import LOGGER, setup_logging

#: Programs beside the stages, without a section of the config: module → what it does.
TOOLS = {
    "checkpoint": "Inspect training checkpoints, reshard them, export their encoder.",
    "encode": "Write embeddings of pictures by a trained or exported encoder.",
    "search": "Find the nearest pictures of a folder and write a page of them.",
    "doctor": "Look before a run for what usually goes wrong, on this machine or a Slurm cluster.",
    "run": "Run Snakemake, going on where a killed one stopped; all options are Snakemake's.",
}
#: Those that hand their options on to another program: no option is ours.
_PASSES_ON = {"run"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage. Returns 0, or 2 after a :class:`UserError` (one line on stderr)."""
    # opencv's companion asks the network for its newest version at import; never do that.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        arguments = _parser(list(argv if argv is not None else sys.argv[1:])).parse_args(argv)
        setup_logging(arguments.log, arguments.command)
        section = None
        if arguments.command in SECTIONS:
            overrides = {
                key: getattr(arguments, f"key_{key}")
                for key in SECTIONS[arguments.command].model_fields
                if hasattr(arguments, f"key_{key}")
            }
            section = parse_section(arguments.command, arguments.config, overrides)
        arguments.run(arguments, section)
    except UserError as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        _say("interrupted; finished work is kept, the same command goes on")
        return 130
    except Exception:
        # A defect of ours: the traceback belongs into the log file as well as on the terminal.
        LOGGER.exception("failed")
        return 1
    return 0


def _say(message: str) -> None:
    """Show a message to the user: as a log line once logging is set up, else plainly."""
    if LOGGER.handlers:
        LOGGER.error(message)
    else:
        print(f"mlcd: {message}", file=sys.stderr)


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    """Build the parser; only the chosen stage's module is imported."""
    parser = argparse.ArgumentParser(
        prog="mlcd",
        description="Train a vision encoder by Multi-Label Cluster Discrimination.",
        epilog="Each stage also runs as a Snakemake rule of the same name; see README.md.",
    )
    parser.add_argument("--version", action="version", version=f"mlcd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, model in SECTIONS.items():
        about = " ".join((model.__doc__ or "").split("\n\n")[0].split())
        sub = commands.add_parser(name, help=about, description=about)
        if name == chosen:
            module = importlib.import_module(f"mlcd.{name}")
            files = sub.add_argument_group("files and resources")
            module.add_arguments(files)
            files.add_argument("--log", help="also append log lines to this file")
            _add_keys(sub, model)
            sub.set_defaults(run=module.run)
    for name, about in TOOLS.items():
        # With another prefix character, `--option` is a word as any other.
        how = {"prefix_chars": "\0", "add_help": False} if name in _PASSES_ON else {}
        sub = commands.add_parser(name, help=about, description=about, **how)
        sub.set_defaults(log=None)
        if name == chosen:
            module = importlib.import_module(f"mlcd.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _add_keys(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """Add one option for each key of a section; unset ones keep the config's value."""
    group = parser.add_argument_group(
        "config", "Keys of the section; see docs/config.md. Options win over --config."
    )
    group.add_argument(
        "--config", default="", metavar="FILE|JSON", help="config.yaml, or the section as JSON"
    )
    for key, field in model.model_fields.items():
        default = json.dumps(model.model_construct().model_dump(mode="json").get(key))
        group.add_argument(
            f"--{key.replace('_', '-')}",
            dest=f"key_{key}",
            default=argparse.SUPPRESS,
            help=f"{field.description} [{default}]".replace("%", "%%"),
            **_option(field.annotation),
        )


def _option(annotation: Any) -> dict[str, Any]:
    """Return argparse's arguments for a field: pydantic checks the value, this reads its shape."""
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(annotation) is list:
        if isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel):
            return {"type": json.loads, "metavar": "JSON"}
        return {"nargs": "+", "metavar": "VALUE"}
    if typing.get_origin(annotation) is Literal:
        return {"metavar": "|".join(map(str, kinds)), "type": _word(kinds)}
    optional = type(None) in typing.get_args(annotation)
    return {"metavar": "VALUE", **({"type": _nullable} if optional else {})}


def _word(choices: list[Any]) -> Any:
    """Read a Literal: numbers stay numbers, so that pydantic finds them among the choices."""
    return int if all(isinstance(choice, int) for choice in choices) else str


def _nullable(text: str) -> str | None:
    return None if text in ("null", "none") else text
