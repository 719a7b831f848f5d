"""The schedule of the second phase."""

import pytest

from mlcd.config.train import Train
from mlcd.stages.train.phases import phases
from mlcd.training.lr_schedule import factor


def test_the_second_phase_has_a_schedule_of_its_own():
    section = Train(epochs=3, lr=1e-2, classifier_lr=1e-3, warmup_steps=5)
    (only,) = phases(section, 10)
    assert (only.first, only.last, only.image_size) == (0, 30, 64)
    section = section.model_copy(
        update={"high_res_image_size": 96, "high_res_epochs": 2, "high_res_lr": 1e-3}
    )
    first, second = phases(section, 10)
    assert first == only
    assert (second.first, second.last, second.image_size) == (30, 50, 96)
    assert second.lr == 1e-3 and second.classifier_lr == pytest.approx(1e-4)
    assert second.factor(34, section) == 1.0 and first.factor(29, section) < 0.01
    assert [second.factor(step, section) for step in range(30, 50)] == [
        factor(step, 20, 5, "cosine") for step in range(20)
    ]
