"""Zero-shot classes: prompts, names, the ensemble, and the score from features and a tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mlcd.config.evaluate import Dataset, Evaluate
from mlcd.config.text import Text
from mlcd.encoders import text as towers
from mlcd.errors import UserError
from mlcd.evaluate import zero_shot
from mlcd.evaluate.cached import Features
from mlcd.evaluate.scores import score


@pytest.fixture(scope="module")
def tower() -> towers.TextTower:
    torch.set_num_threads(1)
    section = Text(width=16, layers=1, heads=2, context_length=16)
    return towers.build(section, 8).eval()


def test_prompts_are_media_times_subjects() -> None:
    general = zero_shot.templates("general")
    assert len(general) == len(set(general)) == 80
    assert "a photo of the {}" in general
    assert [prompt.strip() for prompt in zero_shot.templates("name")] == ["{}"]


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"media": ["an X-ray of"], "subjects": ["a {}", "{}"]}))
    assert zero_shot.templates(str(path)) == ["an X-ray of a {}", "an X-ray of {}"]
    path.write_text(yaml.safe_dump({"media": ["an X-ray"], "subjects": ["a thing"]}))
    with pytest.raises(UserError, match="where the class's name goes"):
        zero_shot.templates(str(path))
    path.write_text("- a list")
    with pytest.raises(UserError, match="expected a mapping"):
        zero_shot.templates(str(path))
    with pytest.raises(UserError, match="no set is called 'photo'; known: general"):
        zero_shot.templates("photo")


def test_names_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text("0: T-shirt\n1: [trousers, jeans]\ncat: cat\n")
    found = zero_shot.class_names(path, ["1", "cat", "0"])
    assert found == [["trousers", "jeans"], ["cat"], ["T-shirt"]]
    with pytest.raises(UserError, match="class 'dog' has no name"):
        zero_shot.class_names(path, ["dog"])


def test_the_ensemble_is_the_mean_of_unit_features(tower: towers.TextTower) -> None:
    names, prompts = [["cat", "kitten"], ["dog"]], ["a {}", "the {}"]
    rows = []
    for of_class in names:
        total = torch.zeros(8)
        for name in of_class:
            for prompt in prompts:
                tokens = towers.tokenise([prompt.replace("{}", name)], 16).astype(np.int64)
                feature = tower(torch.from_numpy(tokens))[0][0].detach()
                total += feature / feature.norm()
        rows.append(total / total.norm())
    found = zero_shot.class_weights(tower, names, prompts)
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["accuracy", "mean_top1_top5"])
def test_score_of_features_that_lie_at_the_prompts(tower: towers.TextTower, metric: str) -> None:
    """Features that are the class's own text are put right; one of another class is not."""
    words = ["boat", "cat", "dog", "house", "sky", "sun", "tree"]
    weights = zero_shot.class_weights(tower, [[word] for word in words], ["{}"])
    label = np.array([0, 1, 2, 3, 4, 5, 6, 0])
    feature = 3 * weights[torch.tensor([0, 1, 2, 3, 4, 5, 6, 6])]
    n = len(label)
    data = Features(
        model="trained", dataset="words", seed=0, fingerprint="", key=[b"%d" % i for i in range(n)],
        feature=feature,
        split=np.array(["test"] * n), label=label, class_name=words,
        tags=np.zeros((n, 0), bool), group=np.arange(n),
        group_name=[b"%d" % i for i in range(n)], failed={},
    )  # fmt: skip
    dataset = Dataset(name="words", path="words", tasks=["zero_shot"], metric=metric)
    section = Evaluate(datasets=[dataset], templates="name")
    found = score(section, dataset, data, tower)
    name = "zero_shot" if metric == "accuracy" else f"zero_shot_{metric}"
    if metric == "accuracy":
        assert found["scores"][name] == pytest.approx(7 / 8)
        assert found["chance"][name] == pytest.approx(1 / 7, abs=1e-4)
    else:
        assert 7 / 8 <= found["scores"][name] <= (7 / 8 + 1) / 2
    assert found["zero_shot"] == {"templates": "name", "prompts": 1}
