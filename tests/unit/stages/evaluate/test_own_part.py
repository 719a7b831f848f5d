"""A result of a task with a part of its own: made once, by one process, and resumed."""

from __future__ import annotations

import pytest

from mlcd.config import Evaluate
from mlcd.stages.evaluate import own_part
from mlcd.utils.records import write_record

SCENES = {"name": "scenes", "path": "here/scenes", "tasks": ["regions", "finetune"]}


@pytest.mark.parametrize("part", ["for_dense", "for_finetune"])
def test_a_data_set_may_lie_elsewhere_but_its_keys_and_content_count(part):
    def identity(content: str, **keys: object) -> str:
        section = Evaluate(datasets=[SCENES | keys])
        return own_part.identity_of(getattr(section, part)("scenes", "random"), content)

    assert identity("a") == identity("a", path="there/scenes")
    assert identity("a") != identity("b")
    assert identity("a") != identity("a", group_field="title")


def test_a_result_is_made_once_under_a_lease_and_its_state_outlives_a_kill(tmp_path):
    output = tmp_path / "x.json"
    with pytest.raises(KeyboardInterrupt), own_part.making(output, "one") as state:
        (state / "half").touch()
        assert list((tmp_path / "state" / "x.json.lease").glob("[0-9]*.json"))
        raise KeyboardInterrupt
    with own_part.making(output, "one") as state:
        assert [path.name for path in state.iterdir()] == ["half"]
        write_record(output, {"identity": "one"})
    assert not state.exists()
    with own_part.making(output, "one") as state:
        assert state is None
    # Of something else, or damaged, it is made anew.
    with own_part.making(output, "two") as state:
        assert list(state.iterdir()) == []
        write_record(output, {"identity": "two"})
    output.write_text(output.read_text().replace("two", "TWO"))
    with own_part.making(output, "two") as state:
        assert state is not None
        write_record(output, {"identity": "two"})
