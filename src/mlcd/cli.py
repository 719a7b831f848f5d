"""`mlcd <stage>`: every stage as a program, with every key of its config section as an option.

A stage (`mlcd.stages.<stage>`) or program beside the stages (`mlcd.commands.<name>`) offers two
functions and imports nothing heavy at its top:

    add_arguments(parser)   its files and how wide it runs
    run(arguments, section) its work; raises UserError for what the user can fix
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import json
import os
import select
import signal
import sys
import typing
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from pydantic import BaseModel

from mlcd import __version__
from mlcd.config import SECTIONS, parse_section
from mlcd.config.files import quoted
from mlcd.utils import disk
from mlcd.utils.device import keep_products_exact
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER, setup_logging

#: Programs beside the stages, without a section of the config: module → what it does.
TOOLS = {
    "init": "Make a project folder: config.yaml and profiles, to run without a checkout.",
    "accept": "Let changed code resume an unfinished run, or discard what the run has saved.",
    "checkpoint": "Inspect training checkpoints, reshard them, export their encoder.",
    "score": "Score a training's checkpoints by k-NN on a small labeled set, also while it runs.",
    "encode": "Write embeddings of images by a trained or exported encoder.",
    "search": "Find the nearest images of a folder and write a page of them.",
    "convert": "Write embeddings, labels and centers as .npy and parquet for other programs.",
    "publish": "Write centers and labels, without images, as a data set for others.",
    "doctor": "Look before a run for what usually goes wrong, on this machine or a Slurm cluster.",
    "audit": "Prove what a run is, verify it, repeat it, compare it, explain it.",
    "explore": "Look at the clusters of a run in a browser, or write chosen ones as pages.",
    "status": "Tell on one screen what a run is doing, from its files alone.",
    "track": "Ship a training's numbers to TensorBoard, MLflow, Weights & Biases or Trackio.",
    "run": "Run Snakemake, resuming where a killed one stopped; all options are Snakemake's.",
}
#: Those that hand their options on to another program: no option is ours.
_PASSES_ON = {"run"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage. Returns 0, or 2 after a :class:`UserError` (one line on stderr)."""
    if argv is None:
        _name_all_files()
    # opencv's companion asks the network for its newest version at import; never do that.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        arguments = _parse(list(argv if argv is not None else sys.argv[1:]))
        setup_logging(arguments.log, arguments.command)
        keep_products_exact()
        section = None
        if arguments.command in SECTIONS:
            overrides = {
                key: getattr(arguments, f"key_{key}")
                for key in SECTIONS[arguments.command].model_fields
                if hasattr(arguments, f"key_{key}")
            }
            section = parse_section(arguments.command, arguments.config, overrides)
        work = arguments.run
        if getattr(arguments, "plan", False):
            work = importlib.import_module(f"mlcd.commands.plan.{arguments.command}").run
        work(arguments, section)
        _flush()
    except UserError as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        _say("interrupted; finished work is kept, the same command continues")
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return 128 + signal.SIGPIPE
        if (told := disk.explained(error)) is not None:
            _say(str(told))
            return 2
        # A defect of ours: the traceback belongs into the log file as well as on the terminal.
        LOGGER.exception("failed")
        return 1
    return 0


def _flush() -> None:
    """Write what was printed. Raises :class:`UserError` for a disk that does not take it.

    Python's own attempt, at its end, could only print a traceback.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A reader that has seen enough, such as `head`, is no failure.
        if not isinstance(error, BrokenPipeError):
            raise disk.explained(error, "standard output") or error from None


def _reader_has_left() -> bool:
    """Tell whether nobody reads standard output any more, as after `| head`; no failure of ours."""
    asked = select.poll()
    asked.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in asked.poll(0)):
        return False
    # Python's own attempt to write the rest, at its end, could only print a traceback.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _name_all_files() -> None:
    """Make sure that this program, and what it starts, can read and print any file's name.

    In the C locale (a bare container, cron) Python may take names for ASCII: this program is then
    started again in Python's UTF-8 mode.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _say(message: str) -> None:
    """Show a message to the user: as a log line once logging is set up, else plainly."""
    if LOGGER.handlers:
        LOGGER.error(message)
    else:
        print(f"mlcd: {message}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser whose help begins with what is needed: a short usage, the options, --help last."""

    def format_help(self) -> str:
        """Return the help text."""
        self._shorten()
        return super().format_help()

    def format_usage(self) -> str:
        """Return the usage: what is required, and that there is more."""
        self._shorten()
        return super().format_usage()

    def _shorten(self) -> None:
        if self.usage is not None or self._subparsers is not None:
            return
        words = [self.prog]
        for action in self._actions:
            if action.required:
                value = action.metavar or action.dest.upper()
                words += [*action.option_strings[:1], *([str(value)] if action.nargs != 0 else [])]
        self.usage = " ".join([*words, "[options]"]).replace("%", "%%")
        self._action_groups.sort(key=lambda group: group is self._optionals)

    def error(self, message: str) -> NoReturn:
        """End with the mistake in one line; the usage is in --help."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parse(argv: list[str]) -> argparse.Namespace:
    """Return the arguments. Raises :class:`UserError` for an unknown command or option."""
    parser = _parser(argv)
    if not argv:
        parser.print_help()
        raise SystemExit(2)
    for word in argv:
        try:
            os.fsencode(word)
        except UnicodeEncodeError:
            raise UserError(f"{word!a}: half of a character, which no file can hold") from None
    known = [*SECTIONS, *TOOLS]
    if not argv[0].startswith("-") and argv[0] not in known:
        raise UserError(f"no command {quoted(argv[0])}{_nearest(argv[0], known)} (see mlcd --help)")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in _PASSES_ON:
        # argparse has taken out `--`, which ends the list of an option such as --configfile.
        arguments.arguments = argv[argv.index(arguments.command) + 1 :]
    if rest:
        name = rest[0].partition("=")[0]
        # Where an option is, words that follow it are its values.
        what = "unknown option" if name.startswith("-") else "unexpected word"
        found = [
            word for action in _chosen(parser, argv)._actions for word in action.option_strings
        ]
        raise UserError(
            f"{arguments.command}: {what} {quoted(name)}{_nearest(name, found)} "
            f"(see mlcd {arguments.command} --help)"
        )
    return arguments


def _chosen(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.ArgumentParser:
    """Return the parser of the command that `argv` names."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word in argv:
                if word in action.choices:
                    found: argparse.ArgumentParser = action.choices[word]
                    return found
    return parser


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word[:100], known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    """Build the parser; only the chosen stage's module is imported."""
    parser = _Parser(
        prog="mlcd",
        usage="mlcd COMMAND [options]",
        description="Train a vision encoder by Multi-Label Cluster Discrimination.",
        epilog="Each stage also runs as a Snakemake rule of the same name; see README.md.",
    )
    parser.add_argument("--version", action="version", version=f"mlcd {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands", prog="mlcd"
    )
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, model in SECTIONS.items():
        about = " ".join((model.__doc__ or "").split("\n\n")[0].split())
        sub = commands.add_parser(name, help=about, description=about)
        if name == chosen:
            module = importlib.import_module(f"mlcd.stages.{name}")
            files = sub.add_argument_group("files and resources")
            module.add_arguments(files)
            files.add_argument("--log", help="also append log lines to this file")
            _add_keys(sub, model)
            sub.set_defaults(run=module.run)
    for name, about in TOOLS.items():
        # With another prefix character, `--option` is a word as any other.
        how: dict[str, Any] = {}
        if name in _PASSES_ON:
            how = {"prefix_chars": "\0", "add_help": False}
        sub = commands.add_parser(name, help=about, description=about, **how)
        sub.set_defaults(log=None)
        if name == chosen:
            module = importlib.import_module(f"mlcd.commands.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _add_keys(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """Add one option for each key of a section; unset ones keep the config's value."""
    group = parser.add_argument_group(
        "config", "Keys of the section; see docs/reference/config.md. Options win over --config."
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
    if len(kinds) == 1 and typing.get_origin(kinds[0]) is list:
        annotation, kinds = kinds[0], list(typing.get_args(kinds[0]))
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
