"""The words of CONTRIBUTING.md's glossary, held to: python tests/checks/words.py

Looks through the text that git tracks, or would, for words that we do not use and for British
spelling. Prints one line per finding, and exits with 1 if there is any.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Text that we write. Licenses and data are others'.
_FILES = ("*.py", "*.smk", "*.yaml", "*.md", "*.rst", "*.toml", "*Snakefile", "*Makefile")

#: What stands on either side of "a" where we write "per".
_COUNTED = (
    "bars|bytes|centers|classes|columns|cores|CPUs|epochs|files|GPUs|hours|images|items|jobs|keys|"
    "lines|minutes|nodes|options|panels|pixels|products|rows|seconds|tables|tars|tasks|threads|"
    "tokens|URLs|vectors|words|workers|"
    # One of them, where it can only mean a rate.
    "one (?:bar|chart|class|file|GPU|job|line|model|panel|process|row|step|table|task|thread|URL)"
)
_COUNTED_BY = (
    "batch|cell|chunk|class|cluster|core|CPU|data set|device|epoch|fault|file|forward pass|GPU|"
    "image|job|layer|library|line|metric|mistake|model|node|pair|partition|prompt|query|rank|"
    "rule|run|sample|section|seed|shard|stage|step|tar|worker"
)

#: Pattern, in any case of letters unless it says otherwise → what to write.
WORDS: dict[str, str] = {
    r"pictures?": "image",
    r"mend(?:s|ed|ing)?": "fix",
    r"(?:go|goes|going|went) on": "continue, or resume from saved state",
    r"dear(?:er|est|ly)?": "expensive",
    r"passing (?:condition|error|failure|fault|outage|problem|trouble)s?": "transient",
    r"push(?:es|ed)? off": "preempt",
    rf"(?:{_COUNTED}) an? (?:{_COUNTED_BY})": "per",
    # British spelling
    r"centr(?:e|es|ed|ing)": "center",
    r"neighbour\w*": "neighbor",
    r"behaviours?": "behavior",
    r"colour\w*": "color",
    r"favour\w*": "favor",
    r"honour\w*": "honor",
    r"grey\w*": "gray",
    r"licence[sd]?": "license",
    r"judgement": "judgment",
    r"artefacts?": "artifact",
    r"catalogues?": "catalog",
    r"programmes?": "program",
    r"fulfil": "fulfill",
    r"(?:unl|l)abell\w*": "label, labeled",
    r"modell\w*": "model, modeling",
    r"cancell(?:ed|ing)": "canceled, canceling",
    r"analys(?:e|ed|ing)": "analyze",
    r"\w*(?:categor|final|general|initial|local|material|maxim|memor|minim|normal|optim|organ|"
    r"parallel|penal|quant|random|real|recogn|regular|serial|special|standard|summar|synchron|"
    r"token|util|vector|visual)is(?:e|ed|er|ers|es|ing|ation|ations)": "-ize",
}

#: (file, pattern of the line, reason): findings that stay.
ALLOWED: tuple[tuple[str, str, str], ...] = (
    ("tests/checks/words.py", "", "this list"),
    ("tests/checks/test_words.py", "", "its test"),
    ("CONTRIBUTING.md", r"^\|", "the glossary's column of words that we do not use"),
    ("CHANGELOG.md", r"^\|", "former names"),
    ("mkdocs.yml", "blue grey", "a color's name in the theme"),
    ("src/mlcd/config/report.py", "montage_pictures", "a key's former name, which gets a hint"),
    ("src/mlcd/data/labeled/templates.yaml", "picture of", "prompts: the scores depend on them"),
    ("*", "CANCELLED", "a state of Slurm"),
)


def findings(path: str, text: str) -> Iterator[str]:
    """Yield `path:line: word: what to write` for each finding in the text of the file `path`."""
    for number, line in enumerate(text.splitlines(), 1):
        for match in _PATTERN.finditer(line):
            if not any(
                fnmatch(path, file) and re.search(about, line) for file, about, _ in ALLOWED
            ):
                word = match.group()
                yield f"{path}:{number}: {word!r}: write {_instead(word)}"


def tracked(root: Path = ROOT) -> list[str]:
    """Return the files to look through, as paths below `root`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *_FILES],
        cwd=root, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    return sorted(path for path in listed if path and (root / path).is_file())


def _instead(word: str) -> str:
    return next(right for wrong, right in WORDS.items() if re.fullmatch(wrong, word, re.IGNORECASE))


# Parts of a snake_case name are words too; longer words that hold one are not meant.
_PATTERN = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(WORDS)})(?![A-Za-z])", re.IGNORECASE)


def main() -> int:
    """Print the findings of all files; return the exit status."""
    found = [
        finding
        for path in tracked()
        for finding in findings(path, (ROOT / path).read_text(encoding="utf-8"))
    ]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
