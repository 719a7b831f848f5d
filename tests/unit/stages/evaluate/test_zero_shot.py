"""Zero-shot classes: the ensemble, and the score from features and a tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mlcd.config.evaluate import Evaluate
from mlcd.config.labeled import Dataset
from mlcd.config.text import Text
from mlcd.data.labeled import prompts
from mlcd.models import text_tower as towers
from mlcd.stages.evaluate import tags as of_tags
from mlcd.stages.evaluate import zero_shot
from mlcd.stages.evaluate.cached import Features
from mlcd.stages.evaluate.scores import score
from mlcd.utils.errors import UserError


@pytest.fixture(scope="module")
def tower() -> towers.TextTower:
    torch.set_num_threads(1)
    section = Text(width=16, layers=1, heads=2, context_length=16)
    return towers.build(section, 8).eval()


def test_the_ensemble_is_the_mean_of_unit_features(tower: towers.TextTower) -> None:
    names, texts = [["cat", "kitten"], ["dog"]], ["a {}", "the {}"]
    rows = []
    for of_class in names:
        total = torch.zeros(8)
        for name in of_class:
            for prompt in texts:
                tokens = towers.tokenize([prompt.replace("{}", name)], 16).astype(np.int64)
                feature = tower(torch.from_numpy(tokens))[0][0].detach()
                total += feature / feature.norm()
        rows.append(total / total.norm())
    found = zero_shot.class_weights(tower, names, texts)
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-5, atol=1e-6)


def features(feature: torch.Tensor, label: np.ndarray, words: list[str], **more) -> Features:
    n = len(label)
    values = {
        "model": "trained", "dataset": "words", "seed": 0, "fingerprint": "",
        "key": [b"%d" % i for i in range(n)], "feature": feature,
        "split": np.array(["test"] * n), "label": label, "class_name": words,
        "tags": np.zeros((n, 0), bool), "group": np.arange(n),
        "group_name": [b"%d" % i for i in range(n)], "failed": {},
    }  # fmt: skip
    return Features(**values | more)


@pytest.mark.parametrize("metric", ["accuracy", "mean_top1_top5"])
def test_score_of_features_that_lie_at_the_prompts(tower: towers.TextTower, metric: str) -> None:
    """Features that are the class's own text are put right; one of another class is not."""
    words = ["boat", "cat", "dog", "house", "sky", "sun", "tree"]
    weights = zero_shot.class_weights(tower, [[word] for word in words], ["{}"])
    label = np.array([0, 1, 2, 3, 4, 5, 6, 0])
    feature = 3 * weights[torch.tensor([0, 1, 2, 3, 4, 5, 6, 6])]
    data = features(feature, label, words)
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


def test_a_set_has_prompts_of_its_own(tower: towers.TextTower) -> None:
    words = ["boat", "cat"]
    weights = zero_shot.class_weights(tower, [[word] for word in words], ["{}"])
    dataset = Dataset(name="words", path="words", tasks=["zero_shot"], templates="clipart")
    section = Evaluate(datasets=[dataset], templates="name")
    found = score(section, dataset, features(weights, np.array([0, 1]), words), tower)
    assert found["zero_shot"] == {"templates": "clipart", "prompts": 15}
    assert (
        section.for_features()
        == Evaluate(datasets=[dataset.model_copy(update={"templates": None})]).for_features()
    )


def test_tags_are_found_by_their_names(tower: towers.TextTower) -> None:
    words = ["boat", "cat", "dog"]
    weights = zero_shot.class_weights(tower, [[word] for word in words], ["{}"])
    tags = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]], bool)
    keys = {"path": "x", "tasks": ["zero_shot"], "metric": "map_11_point", "tags_field": "tags"}
    dataset = Dataset(name="words", min_tag_count=2, **keys)
    section = Evaluate(datasets=[dataset], templates="name")
    data = features(
        weights[[0, 1, 2, 0] * 2], np.full(8, -1), [], tags=np.concatenate([tags, tags]),
        tag_name=words, split=np.array(["train"] * 4 + ["test"] * 4),
    )  # fmt: skip
    result = {"scores": {}, "chance": {}}
    zero_shot.judge(section, dataset, data, tower, result)
    assert result["scores"] == {"zero_shot_map_11_point": 1.0}
    assert result["chance"]["zero_shot_map_11_point"] == pytest.approx(4 / 12)
    # Of the tags, and on the images, that the probe of tags is judged by: rare ones are left out,
    # and an image without any is a wrong answer to all.
    data.tags[3], data.tags[7] = False, False
    few = dataset.model_copy(update={"min_tag_count": 3})
    data.tags[[0, 1]] = [[1, 1, 0], [1, 1, 0]]
    zero_shot.judge(section, few, data, tower, result)
    assert result["chance"]["zero_shot_map_11_point"] == pytest.approx(1 / 4)
    assert of_tags.counted(few, data).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("label", "words", "keys", "message"),
    [
        ([0, 1, 2], ["a", "b", "c"], {"metric": "roc_auc"}, "words has 3 classes; roc_auc is of"),
        ([0, 0, 0], ["a", "b"], {"metric": "roc_auc"}, "test images are all of one class"),
        ([0, 0, 0], ["a"], {}, "words has one class; two are needed"),
        ([-1, -1, -1], [], {}, "words has no classes for zero_shot; set label_field"),
    ],
)
def test_what_cannot_be_judged_is_refused(tower, label, words, keys, message) -> None:
    dataset = Dataset(name="words", path="words", tasks=["zero_shot"], **keys)
    data = features(torch.randn(3, 8), np.array(label), words)
    with pytest.raises(UserError, match=message):
        score(Evaluate(datasets=[dataset], templates="name"), dataset, data, tower)


def test_prompts_and_names_are_looked_at_before_any_work(tmp_path: Path) -> None:
    names = tmp_path / "names.yaml"
    names.write_text("cat: a cat\n")
    keys = {"tasks": ["zero_shot"], "templates": "clipart", "class_names": str(names)}
    section = Evaluate(datasets=[{"name": "a", "path": "a", **keys}])
    assert [Path(path).name for path in prompts.check(section)] == ["templates.yaml", "names.yaml"]
    names.write_text("cat:\n")
    with pytest.raises(UserError, match="class 'cat' has no name"):
        prompts.check(section)
    with pytest.raises(UserError, match="no set is called 'generl'"):
        prompts.check(Evaluate(templates="generl"))
