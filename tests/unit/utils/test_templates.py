"""Templates: what of strangers' words counts as a mark in Markdown and in HTML."""

from __future__ import annotations

import importlib
import re

import jinja2
import pytest

from helpers.paths import ROOT
from mlcd.stages.export.encoder_facts import encoder_facts
from mlcd.utils import templates


def test_code_is_one_line_in_which_no_mark_counts():
    assert templates.code("a`b|c\n<d>") == r"`a'b\|c <d>`"
    assert templates.code("") == "` `"
    assert templates.code(7) == "`7`"


def test_a_table_has_as_many_cells_as_its_header_whatever_is_in_them():
    text = templates.table(("", "a|b"), [("x\ny", templates.code("c|d")), (1, "e|f")])
    assert text == (
        "|  | a\\|b |\n"
        "| --- | --- |\n"
        "| x y | `c\\|d` |\n"
        "| 1 | e\\|f |\n"
    )  # fmt: skip
    for line in text.splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 3


@pytest.mark.parametrize("name", ["stages.export", "commands.publish"])
def test_cards_take_what_they_need_from_one_place(name):
    """No card sets up jinja2 by itself, nor a table."""
    package = importlib.import_module(f"mlcd.{name}")
    folder = ROOT / "src" / "mlcd" / name.replace(".", "/")
    assert package.__file__ == str(folder / "__init__.py")
    for path in folder.rglob("*.py"):
        assert "jinja2" not in path.read_text(), path
    assert "macro" not in (folder / "templates" / "card.md").read_text()
    with pytest.raises(jinja2.UndefinedError):
        templates.markdown(f"mlcd.{name}", "templates").get_template("card.md").render()


def test_html_escapes_and_markdown_does_not():
    for make, said in ((templates.html, "&lt;b&gt;"), (templates.markdown, "<b>")):
        found = make("mlcd.stages.report", "templates").from_string("{{ word }}").render(word="<b>")
        assert found == said


def test_facts_of_the_encoder_put_no_mark_into_a_card():
    assert encoder_facts({}) == [("Embeddings that were clustered", "of an unknown encoder")]
    model = {"name": "ViT|`x", "pretrained": "openai", "weights_sha256": "ab"}
    assert encoder_facts(model) == [
        ("Embeddings that were clustered", r"`ViT\|'x` `openai`"),
        ("That encoder's weights", "SHA-256 `ab`"),
    ]
