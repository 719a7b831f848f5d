"""The text tower: its loss on any number of ranks, its data, its resume, what it learns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import text_runs
from mlcd.config.text import Text
from mlcd.data.captions import Captions
from mlcd.data.embeddings import Embeddings
from mlcd.launch.api import run_gang
from mlcd.launch.options import Resources
from mlcd.models import text_tower as towers
from mlcd.stages.text.pairs import Pairs
from mlcd.utils.errors import UserError

CHECKED = {"checkpoint_every": 2, "keep": 99}


def test_a_temperature_beyond_the_limit_comes_back():
    shape = {"width": 8, "layers": 1, "heads": 1, "context_length": 4}
    tower = towers.build(Text(**shape), 4)
    beyond = np.log(100) + 0.2
    for sign, expected in ((1.0, True), (-1.0, False)):
        with torch.no_grad():
            tower.log_scale.fill_(beyond)
        optimizer = torch.optim.SGD([tower.log_scale], lr=0.001)
        for _ in range(5):
            _, scale = tower(torch.ones(1, 4, dtype=torch.int64))
            if tower.log_scale.item() >= np.log(100):
                assert scale.item() == pytest.approx(100)
            optimizer.zero_grad()
            (sign * scale.sum()).backward()
            optimizer.step()
        # Where a smaller scale lowers the loss it falls; where a larger one would, it stays.
        assert (tower.log_scale.item() < np.log(100)) == expected
        assert expected or tower.log_scale.item() == pytest.approx(beyond)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return text_runs.chunks(tmp_path_factory.mktemp("chunks"))


@pytest.fixture(scope="module")
def trained(
    paths: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Runs of one and of two ranks: all ZeRO stages, one cut off in the middle, a longer one."""
    root = tmp_path_factory.mktemp("runs")
    found: dict[str, Any] = {"root": root}
    for ranks in (1, 2):
        runs = {
            f"stage {stage}": text_runs.planned(
                paths, root / f"{ranks}-{stage}", ranks=ranks, options=CHECKED, zero_stage=stage
            )
            for stage in (0, 1, 2, 3)
        }
        # The same run again, from the middle one of its checkpoints.
        cut = text_runs.planned(paths, root / f"{ranks}-cut", ranks=ranks, options=CHECKED)
        first = [*runs.values()]
        if ranks == 1:
            runs["long"] = text_runs.planned(
                paths, root / "long", options=CHECKED, epochs=60, shuffle_window=64
            )
            first.append(runs["long"])
        resources = Resources(ranks_per_node=ranks)
        for number, batch in enumerate((first, [cut])):
            if number:
                source = Path(runs["stage 1"]["state"]) / "checkpoints" / "step_00000004"
                shutil.copytree(source, Path(cut["state"]) / "checkpoints" / source.name)
            folder = root / f"gang-{ranks}-{number}"
            folder.mkdir()
            run_gang(
                text_runs.train_many, {"runs": batch, "folder": str(folder)}, folder, resources
            )
        found[ranks] = {**runs, "cut": cut}
    return found


def reference() -> dict[str, Any]:
    """The loss as CLIP's figure 3 writes it, over the whole batch."""
    image, text = text_runs.loss_pairs()
    text.requires_grad_(True)
    scale = torch.tensor([7.0], requires_grad=True)
    a = image / image.norm(dim=1, keepdim=True)
    b = text / text.norm(dim=1, keepdim=True)
    logits = scale * a @ b.T
    diagonal = logits.diag()
    loss = (logits.logsumexp(0) - diagonal).mean() / 2 + (logits.logsumexp(1) - diagonal).mean() / 2
    loss.backward()
    assert text.grad is not None and scale.grad is not None
    found = (logits.argmax(0) == torch.arange(len(logits))).float().mean()
    return {
        "loss": loss.item(), "found": found.item(), "text": text.grad, "scale": scale.grad.item(),
    }  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
def test_loss_and_gradients_are_those_of_the_whole_batch(
    trained: dict[str, Any], ranks: int
) -> None:
    parts = [
        json.loads((trained["root"] / f"gang-{ranks}-0" / f"loss-{rank}.json").read_text())
        for rank in range(ranks)
    ]
    expected = reference()
    for name in ("loss", "found", "scale"):
        assert np.mean([part[name] for part in parts]) == pytest.approx(expected[name], rel=1e-5)
    # Each rank's rows got the sum over ranks, which the engine divides by their number.
    rows = torch.cat([torch.tensor(part["text"]) for part in parts]) / ranks
    torch.testing.assert_close(rows, expected["text"], rtol=1e-4, atol=1e-6)


def test_captions_follow_the_embeddings_and_leave_out_blanks(paths: dict[str, list[str]]) -> None:
    captions = Captions(paths["captions"][0])
    row, token = captions.read(0, captions.n)
    assert row.tolist() == [row for row in range(21) if row % 7 != 3]
    assert token.dtype == np.uint16 and token.shape == (18, 6)
    # start, a, …, and, …, end: six tokens exactly.
    assert (token[:, 0] == towers.VOCABULARY - 2).all()
    assert (token[:, -1] == towers.VOCABULARY - 1).all()
    assert captions.embeddings == Embeddings(paths["embeddings"][0]).fingerprint


def test_a_long_caption_is_cut_and_still_ends(paths: dict[str, list[str]]) -> None:
    token = towers.tokenize(["one two three four five six", "", "one"], 4)
    assert token[0, -1] == towers.VOCABULARY - 1
    assert token[1].tolist() == [towers.VOCABULARY - 2, towers.VOCABULARY - 1, 0, 0]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_each_step_and_rows_fit_their_captions(
    paths: dict[str, list[str]], world_size: int
) -> None:
    section = Text(**text_runs.TINY)
    files = paths["embeddings"], paths["captions"]
    ranks = [Pairs(*files, section, rank, world_size) for rank in range(world_size)]
    known = {}
    for vectors, captions in zip(*files, strict=True):
        row, token = Captions(captions).read(0, 99)
        for image, words in zip(Embeddings(vectors).read()[row], token, strict=True):
            known.setdefault(words.tobytes(), []).append(image.tobytes())
    alone = Pairs(*files, section, 0, 1)
    for step in range(2 * alone.order.steps_per_epoch):
        parts = [rank.read(step) for rank in ranks]
        token = torch.cat([part.token for part in parts])
        torch.testing.assert_close(token, alone.read(step).token)
        images = torch.cat([part.image for part in parts]).numpy()
        for image, words in zip(images, token.numpy().astype(np.uint16), strict=True):
            assert image.tobytes() in known[words.tobytes()]
    ahead = list(ranks[0].batches(1, 4))
    assert len(ahead) == 3
    torch.testing.assert_close(ahead[0].token, ranks[0].read(1).token)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_ranks_and_zero_stages_give_the_same_losses(trained: dict[str, Any], stage: int) -> None:
    expected = [line["loss"] for line in text_runs.lines(trained[1]["stage 0"])]
    assert len(expected) == 6
    for ranks in (1, 2):
        found = text_runs.lines(trained[ranks][f"stage {stage}"])
        assert [line["loss"] for line in found] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resumed_run_ends_with_the_same_bytes(trained: dict[str, Any], ranks: int) -> None:
    whole = Path(trained[ranks]["stage 1"]["output"]) / "text.safetensors"
    cut = Path(trained[ranks]["cut"]["output"]) / "text.safetensors"
    assert cut.read_bytes() == whole.read_bytes()
    assert [line["step"] for line in text_runs.lines(trained[ranks]["cut"])] == [5, 6]


def test_it_learns_the_words(trained: dict[str, Any]) -> None:
    """Two thirds of the planted pairs of words find their own image first."""
    record = text_runs.lines(trained[1]["long"])
    assert record[0]["accuracy"] < 0.4
    assert record[-1]["accuracy"] > 0.6
    tower = towers.load(trained[1]["long"]["output"])
    features = towers.encode(tower, [f"a {word} and {word}" for word in text_runs.WORDS])
    directions = text_runs.unit_vectors(len(text_runs.WORDS), 8, seed=5)
    nearest = (features.numpy() @ directions.T).argmax(1)
    assert (nearest == np.arange(len(nearest))).mean() >= 0.75


def test_a_tower_of_another_encoder_is_refused(trained: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="another encoder; rerun text"):
        towers.load(trained[1]["long"]["output"], "0" * 64)


def test_files_that_do_not_fit_are_refused(paths: dict[str, list[str]], tmp_path: Path) -> None:
    turned = {**paths, "captions": paths["captions"][::-1]}
    with pytest.raises(UserError, match=r"other embeddings than .*; rerun text_captions"):
        text_runs.planned(turned, tmp_path, options={})
    with pytest.raises(UserError, match="context_length is 9; rerun text_captions"):
        text_runs.planned(paths, tmp_path, options={}, context_length=9)
    with pytest.raises(UserError, match="only 30 images have a caption"):
        text_runs.planned(paths, tmp_path, options={}, batch_size=64)
    with pytest.raises(UserError, match="does not divide by 5 ranks"):
        text_runs.planned(paths, tmp_path, ranks=5, options={})
