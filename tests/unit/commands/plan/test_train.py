"""`mlcd train --plan`: the presets on three cards, and what is refused."""

from __future__ import annotations

import re

import pytest

from helpers.footprints import recorded
from helpers.paths import ROOT
from helpers.refusals import refused
from mlcd import cli
from mlcd.stages.train import fit

ROWS = {
    "laion400m-vit-l14": 389_737_314,
    "coyo700m-vit-l14": 686_591_232,
    "imagenet-rn50": 1_281_167,
}


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """The presets' footprints without seconds of tracing; test_fit holds them to the code."""
    monkeypatch.setattr(fit, "footprint", recorded)


def words(preset, *options):
    path = ROOT / "workflow" / "presets" / f"{preset}.yaml"
    return ["train", "--plan", "--config", str(path), "--rows", str(ROWS[preset]), *options]


@pytest.mark.parametrize("preset", ROWS)
@pytest.mark.parametrize(
    "card",
    [("--gpu", "a100-40", "--ranks-per-node", "8"), ("--gpu", "h100", "--ranks-per-node", "8"),
     ("--gpu", "rtx4090", "--ranks-per-node", "1")],
    ids=lambda card: card[1],
)  # fmt: skip
def test_presets_plan_on_every_card(preset, card, capsys) -> None:
    assert cli.main(words(preset, *card)) == 0
    said = capsys.readouterr().out
    phases = 1 if preset == "imagenet-rn50" else 2
    for line in ("  micro-batch", "  memory", "  images/s", "  decoders", "  network", "  time"):
        assert said.count(line) == phases
    # A million centers leave one such card room for few images.
    small = "rtx4090" in card and phases == 2
    assert ("activation_checkpointing: true takes more" in said) == small
    assert "GPU hours, if data and network keep up" in said


def test_laion_on_eight_h100(capsys) -> None:
    assert cli.main(words("laion400m-vit-l14", "--gpu", "h100", "--ranks-per-node", "8")) == 0
    lines = dict.fromkeys(map(str.strip, capsys.readouterr().out.splitlines()))
    # 40 % of 989 TFLOP/s at 486 GFLOP of the encoder and 0.6 of the classifier.
    assert any(line.startswith("images/s") and "6,50" in line for line in lines)
    assert any(line.startswith("224 pixels") and "380,576 steps" in line for line in lines)
    assert any(line.startswith("decoders") and "6 of a GPU's cores" in line for line in lines)


def centers(out: str) -> float:
    """Return the gigabytes of centers and moments of the first phase."""
    found = re.search(r"centers ([\d.]+) (MB|GB)", out)
    assert found
    return float(found[1]) / (1000 if found[2] == "MB" else 1)


def test_the_words_of_a_second_head_count(capsys) -> None:
    card = ("--gpu", "h100", "--ranks-per-node", "8")
    found = []
    for options in ([], ["--ocr-weight", "0.5"], ["--ocr-weight", "0.5", "--words", "1000000"]):
        assert cli.main(words("laion400m-vit-l14", *card, *options)) == 0
        said = capsys.readouterr().out
        found.append(centers(said))
        assert ("words " in said) == bool(options)
    # K = 1M; without --words those that ocr.most_words allows. Printed to a tenth.
    assert "1,000,000 at most, 10 per image" in said
    assert found[1] == pytest.approx(1.1 * found[0], abs=0.1)
    assert cli.main(words("laion400m-vit-l14", *card, "--words", "10")) == 2
    refused(capsys, "--words: train.ocr_weight is 0")
    assert cli.main(words("laion400m-vit-l14", *card, "--ocr-weight", "1", "--words", "0")) == 2
    refused(capsys, "--words: --plan needs it")
    assert found[2] == pytest.approx(2 * found[0], abs=0.15)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], ["--gpu", "--gpu-memory and --flops"]),
        (["--gpu", "abacus"], ["--gpu", "'abacus'", "a100"]),
        (["--gpu-memory", "80GB"], ["--flops", "--plan needs it"]),
        (["--gpu-memory", "much", "--flops", "1e14"], ["--gpu-memory", "'much' is no size"]),
        (["--gpu", "a100", "--flops", "-1"], ["--flops", "1e14"]),
        (["--gpu", "a100", "--micro-batch", "32768", "--ranks-per-node", "1"],
         ["32768 images of 224 pixels at once take", "a smaller --micro-batch"]),
        (["--gpu-memory", "16GB", "--flops", "1e13", "--ranks-per-node", "1"],
         ["1 image of 224 pixels at once take", "of which 15.2 GB", "set 2 GPUs"]),
        (["--gpu", "a100", "--ranks-per-node", "7"], ["train.batch_size", "7 ranks"]),
        (["--gpu", "a100", "--rows", "9"], ["train.batch_size", "lower it"]),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused(options, said, capsys) -> None:
    assert cli.main(words("laion400m-vit-l14", *options)) == 2
    refused(capsys, *said)


def test_without_a_config_file_the_numbers_must_be_given(capsys) -> None:
    plain = ["train", "--plan", "--gpu", "a100", "--rows", "1000"]
    assert cli.main(plain) == 2
    refused(capsys, "--classes", "--plan needs it")
    assert cli.main(["train", "--labels", "x"]) == 2
    refused(capsys, "--images", "--plan")
