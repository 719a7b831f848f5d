"""Words of the glossary: none of those that we do not use stands anywhere, and they are found."""

import subprocess
import sys

import pytest

from checks import words


def test_no_word_that_we_do_not_use_stands_anywhere():
    done = subprocess.run([sys.executable, words.__file__], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_it_looks_through_code_rules_configs_and_docs():
    files = set(words.tracked())
    assert {"src/mlcd/cli.py", "workflow/Snakefile", "config.yaml", "README.md"} <= files
    assert any(file.startswith("rules/") for file in files)


@pytest.mark.parametrize(
    "line, right",
    [
        ("# The centre of a cluster", "center"),
        ("the dearest model", "expensive"),
        ("test_a_cancelled_job", "canceled"),
        ("the optimiser's state", "-ize"),
        ("Normalisation of rows", "-ize"),
        ("a passing error of the network", "transient"),
        ("rows a chunk", "per"),
        ("draws one panel a data set", "per"),
        ("nearest_neighbours(k)", "neighbor"),
        ("the run goes on", "continue"),
    ],
)
def test_a_word_is_found_with_what_to_write(line, right):
    (found,) = words.findings("src/mlcd/some.py", f"fine\n{line}\n")
    assert found.startswith("src/mlcd/some.py:2: ")
    assert right in found


@pytest.mark.parametrize(
    "line",
    [
        "amend, recommend, comment: longer words that hold one",
        "state CANCELLED",
        "passing the rows on",
        "compares rows a second time",
        "it raises and promises otherwise",
    ],
)
def test_other_words_are_left_alone(line):
    assert list(words.findings("src/mlcd/some.py", line)) == []


def test_what_may_stay_may_stay_in_its_own_file_alone():
    line = 'renamed = {"montage_pictures": "report.montage_images"}'
    assert not list(words.findings("src/mlcd/config/report.py", line))
    assert list(words.findings("src/mlcd/config/train.py", line))
