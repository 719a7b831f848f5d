"""Prompts and names of classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mlcd.data.labeled import prompts
from mlcd.utils.errors import UserError


def test_prompts_are_media_times_subjects() -> None:
    general = prompts.templates("general")
    assert len(general) == len(set(general)) == 80
    assert "a photo of the {}" in general
    assert [prompt.strip() for prompt in prompts.templates("name")] == ["{}"]


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"media": ["an X-ray of"], "subjects": ["a {}", "{}"]}))
    assert prompts.templates(str(path)) == ["an X-ray of a {}", "an X-ray of {}"]
    path.write_text(yaml.safe_dump({"media": ["an X-ray"], "subjects": ["a thing"]}))
    with pytest.raises(UserError, match="where the class's name goes"):
        prompts.templates(str(path))
    for media, subjects in (("a photo of", ["{}"]), (["a"], "{}"), (["a"], [3]), (None, ["{}"])):
        path.write_text(yaml.safe_dump({"media": media, "subjects": subjects}))
        # Three is a word here, as a class may be.
        if subjects != [3]:
            with pytest.raises(UserError, match="expected lists 'media' and 'subjects'"):
                prompts.templates(str(path))
    path.write_text("- a list")
    with pytest.raises(UserError, match="expected a mapping"):
        prompts.templates(str(path))
    with pytest.raises(UserError, match="no set is called 'photo'; known: general"):
        prompts.templates("photo")


def test_names_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text("0: T-shirt\n1: [trousers, jeans]\ncat: cat\nno: yes\n²: square\n")
    found = prompts.class_names(path, ["1", "cat", "0", "no", "²"])
    assert found == [["trousers", "jeans"], ["cat"], ["T-shirt"], ["yes"], ["square"]]
    with pytest.raises(UserError, match="class 'dog' has no name"):
        prompts.class_names(path, ["dog"])
