"""The text tower in the real workflow: from a list of URLs to what it scores in the results."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from helpers.checkout import CONFIG, ROOT, ROWS, Checkout, serving

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(
        not (ROOT / "demo" / "openclipart.tar").exists(), reason="demo/openclipart.tar is missing"
    ),
    pytest.mark.timeout(900),
    # The tower and its scores have tests of their own; this is the whole workflow with them.
    pytest.mark.long,
]

TARGETS = tuple(
    f"results/{name}"
    for name in ("evaluate/summary.csv", "report/results.html", "report/text.html")
)

#: One chunk, and nothing that the target does not need.
CHANGES = {
    "metadata": ["lists/first.parquet"],
    "prepare": {"chunk_rows": 2 * ROWS},
    "text": {
        "enabled": True,
        "epochs": 2,
        "batch_size": 8,
        "width": 16,
        "layers": 1,
        "context_length": 8,
        "log_every": 1,
        "shuffle_block": 4,
        "shuffle_window": 32,
    },
    "evaluate": {
        "datasets": [
            {
                "name": "few",
                "path": "few.tar",
                "label_field": "top",
                "caption_field": "title",
                "tasks": ["zero_shot", "image_text_retrieval"],
            }
        ],
        "models": ["trained"],
        "templates": "prompts.yaml",
    },
}

PROMPTS = 'media: [""]\nsubjects: ["{}"]\n'

#: What is stale with the tower.
AFTER_TEXT = {"evaluate_texts", "evaluate", "evaluate_summary", "report_results"}

#: And with its training.
TRAINED = {"text", "report_text"} | AFTER_TEXT


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A checkout whose workflow has run up to the results of the trained encoder."""
    base = tmp_path_factory.mktemp("text")
    checkout = Checkout(base / "checkout")
    checkout.configure(**CHANGES)
    (checkout.folder / "prompts.yaml").write_text(PROMPTS)
    with serving(base / "site") as url:
        checkout.write_images(url, base / "site")
        done = checkout.snakemake("--cores", "2", *TARGETS)
    assert done.returncode == 0, done.stdout[-6000:]
    return checkout


@pytest.fixture
def configured(finished):
    """The finished checkout, whose config a test may change for a dry run."""
    yield finished
    finished.configure(**CHANGES)


def scores(checkout) -> dict:
    path = checkout.folder / "results" / "evaluate" / "trained.json"
    return json.loads(path.read_text())["datasets"]["few"]


def test_zero_shot_stands_in_the_results(finished):
    found = scores(finished)
    # As many images as the score has steps.
    hits = found["scores"]["zero_shot"] * found["images"]["test"]
    assert hits == pytest.approx(round(hits), abs=0.01)
    assert found["chance"]["zero_shot"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["zero_shot"] == {"templates": "prompts.yaml", "prompts": 1}


def test_images_and_titles_stand_in_the_results(finished):
    found = scores(finished)
    about = found["image_text_retrieval"]
    assert about["images"] == about["captions"] == found["images"]["test"] > 2 * ROWS
    ways = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    table = pd.read_csv(finished.folder / TARGETS[0])
    table = table[table.model == "trained"].set_index("metric").value
    assert set(table.index) == {"zero_shot", *ways}
    for name in ways:
        hits = table[name] * about["images"]
        assert hits == pytest.approx(round(hits), abs=0.01)
    for way in ("image_to_text", "text_to_image"):
        assert table[f"{way}_r1"] <= table[f"{way}_r5"] <= table[f"{way}_r10"]
        assert 1 <= about[f"{way}_median_rank"] <= about["images"]
    page = (finished.folder / TARGETS[1]).read_text()
    assert all(f">{name}<" in page for name in ("zero_shot", *ways))


def test_the_tower_is_of_this_encoder_and_saw_every_caption(finished):
    results = finished.folder / "results"
    tower = json.loads((results / "text" / "text.json").read_text())
    encoder = json.loads((results / "train" / "encoder.json").read_text())
    assert tower["encoder_sha256"] == encoder["sha256"]
    assert tower["embedding_dim"] == encoder["embedding_dim"] == CONFIG["train"]["embedding_dim"]
    assert tower["section"]["width"] == tower["width"] == 16
    # Every image of the demo has a title.
    steps = [json.loads(line) for line in (results / "text" / "metrics.jsonl").open()]
    assert [line["step"] for line in steps] == list(range(1, 2 * (2 * ROWS // 8) + 1))
    assert tower["steps"] == len(steps)
    first, last = (f"{1 / steps[place]['scale']:.4f}" for place in (0, -1))
    page = (finished.folder / TARGETS[2]).read_text()
    assert f"Learned temperature from {first} to {last};" in page


def test_a_second_run_does_nothing(finished):
    assert finished.stale(*TARGETS) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"text": {"epochs": 3}}, TRAINED),
        ({"text": {"context_length": 9}}, {"text_captions"} | TRAINED),
        ({"evaluate": {"templates": "clipart"}}, AFTER_TEXT - {"evaluate_texts"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_changed_key_makes_what_rests_on_it_stale(configured, change, expected):
    changes = {key: {**CHANGES.get(key, {}), **value} for key, value in change.items()}
    configured.configure(**{**CHANGES, **changes})
    assert set(configured.stale(*TARGETS)) == expected


def test_other_prompts_in_the_same_file_make_the_scores_stale(finished):
    path = finished.folder / "prompts.yaml"
    path.write_text(PROMPTS.replace('[""]', '["a photo of"]'))
    assert set(finished.stale(*TARGETS)) == AFTER_TEXT - {"evaluate_texts"}
    path.write_text("media: []\n")
    refused = finished.snakemake("--dry-run", *TARGETS)
    assert refused.returncode != 0
    assert "prompts.yaml: each prompt needs one" in refused.stdout
    path.write_text(PROMPTS)
    assert finished.stale(*TARGETS) == {}
