"""Generate docs/reference/command-line.md from the parsers of the command line.

python docs/generate_command_line.py            write the page
python docs/generate_command_line.py --check    exit 1 if the page differs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from mlcd import cli
from mlcd.config import SECTIONS

PAGE = Path(__file__).parent / "reference" / "command-line.md"
_HEAD = """\
# Command line

`mlcd COMMAND`: one command for each stage, and the programs beside them. Generated from the parsers
by `python docs/generate_command_line.py`; `mlcd COMMAND --help` shows the same.

| exit code | after |
|---|---|
| 0 | success |
| 1 | a defect of mlcd, with a traceback. Of `mlcd audit`: what was compared differs |
| 2 | a mistake that you can fix, with one line on stderr that says how |
| 130 | Ctrl-C |
"""
_RUN = """\
All options are Snakemake's: `mlcd run --profile profiles/slurm --configfile mine.yaml`.
"""


def page() -> str:
    """Return the text of the page."""
    parts = [_HEAD]
    for title, names in (("Stages", list(SECTIONS)), ("Other programs", list(cli.TOOLS))):
        parts.append(f"## {title}\n")
        for name in names:
            parts += _command(f"mlcd {name}", _parser_of(name), name, "###")
    return "\n".join(parts)


def _parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command, with its options."""
    return _subparsers(cli._parser([name]))[name]


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def _command(title: str, parser: argparse.ArgumentParser, name: str, level: str) -> Iterator[str]:
    yield f"{level} {title}\n"
    if parser.description:
        yield f"{_escape(parser.description)}\n"
    if name == "run":
        yield _RUN
        return
    actions = [
        action
        for group in parser._action_groups
        if group.title != "config"
        for action in group._group_actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    ]
    if actions:
        yield "| option | meaning |\n|---|---|"
        for action in actions:
            yield _row(parser, action)
        yield ""
    if level == "###" and name in SECTIONS:
        yield (
            f"`--config FILE|JSON` reads the section [`{name}`](config.md#{name}) from a config "
            "file, or takes it as\nJSON. Each key of the section is an option as well, with `-` "
            "for `_`. An option wins over `--config`.\n"
        )
    for word, inner in _subparsers(parser).items():
        yield from _command(f"{title} {word}", inner, word, f"{level}#")


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    words = formatter._format_args(action, _metavar(action))
    if not action.option_strings:
        option = words
    elif action.nargs == 0:
        option = action.option_strings[-1]
    else:
        option = f"{action.option_strings[-1]} {words}"
    shown = option.replace("|", "\\|")
    # A default that depends on the machine may not decide what the page says.
    action.help = (action.help or "").replace("[%(default)s]", "[depends on the machine]")
    meaning = _escape(formatter._expand_help(action))
    if action.required and action.option_strings:
        meaning += " **Required.**"
    return f"| `{shown}` | {meaning} |"


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def _escape(text: str) -> str:
    """Return `text` for Markdown: what looks like HTML or a table is neither."""
    words = " ".join(text.split())
    return words.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[")


def main(arguments: list[str]) -> int:
    """Write the page, or check it."""
    text = page()
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.name}: differs from the parsers; run python docs/generate_command_line.py")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
