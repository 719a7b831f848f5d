"""What model hubs read at the top of a model card, and the run that a card names.

Written and read by huggingface_hub. A card is written before its run is sealed, so it names none;
`mlcd audit seal` sets the name in, in the front matter and in one line of the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlcd.config.encoders import OPEN_CLIP, PACKAGED
from mlcd.data.initial_files import is_tag

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData

#: The model whose scores are those of what is exported.
JUDGED = "trained"
#: Task of the encoder, as model hubs call it.
_TASK = "image-feature-extraction"
#: How metrics begin that the text tower takes part in.
_OF_TEXT = ("zero_shot", "image_to_text", "text_to_image")
#: How metrics begin of a copy of the encoder that was trained on the data set's classes.
_OF_COPY = "finetune"
#: The key of the front matter that holds the run's identity.
RUN = "mlcd_run"
#: The line of the text that says whose the card is, before and after the run is sealed.
UNSEALED = "Identity of the run: none, the run was not sealed."
_SEALED = (
    "Identity of the run: `{0}`. `mlcd audit verify RESULTS --identity {0}` tells whether results "
    "are this run's."
)
_LINE = re.compile(r"^Identity of the run: .*$", re.MULTILINE)


def of(
    about: dict[str, Any],
    library: str,
    lists: Sequence[str],
    results: Mapping[tuple[str, str], Mapping[str, float]],
    license: str | None,
) -> ModelCardData:
    """Return the task, the library, what it was made from, and this encoder's own scores.

    `about` is encoder.json; `results`: (data set, metric) → model → value. Scores that the text
    tower takes part in are not of what is exported, nor are those of a fine-tuned copy.
    """
    from huggingface_hub import EvalResult, ModelCardData

    scores = [
        EvalResult(
            task_type=_TASK,
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=metric,
            metric_value=values[JUDGED],
        )
        for (dataset, metric), values in results.items()
        if JUDGED in values and is_own(metric)
    ]
    return ModelCardData(
        license=license,
        library_name=library,
        pipeline_tag=_TASK,
        base_model=base_model(about),
        datasets=list(lists) or None,
        tags=["mlcd", "vision-encoder", "self-supervised"],
        model_name=about["model"] if scores else None,
        eval_results=scores or None,
    )


def of_text(metric: str) -> bool:
    """Tell whether the text tower takes part in a metric."""
    return metric.startswith(_OF_TEXT)


def is_own(metric: str) -> bool:
    """Tell whether a metric is of what is exported, as it is."""
    return not of_text(metric) and not of_copy(metric)


def of_copy(metric: str) -> bool:
    """Tell whether a metric is of a fine-tuned copy, and not of the encoder as it is."""
    return metric.startswith(_OF_COPY)


def base_model(about: dict[str, Any]) -> str | None:
    """Return the hub's name of the model whose weights came first, where a tag says which.

    `about` is encoder.json. A file has no name there; nor does a tag that only a site has.
    """
    model, source = about["model"], about.get("initial", {}).get("source", "")
    if not source or source == PACKAGED or not is_tag(source, model):
        return None
    if model.startswith(OPEN_CLIP):
        import open_clip

        config = open_clip.get_pretrained_cfg(model.removeprefix(OPEN_CLIP), source)
        # owner/name/ and, for some, the file.
        name = "/".join(str(config.get("hf_hub") or "").split("/")[:2])
    else:
        import timm

        found: Any = timm.get_pretrained_cfg(f"{model.partition('.')[0]}.{source}")
        name = str(getattr(found, "hf_hub_id", None) or "")
    return name or None


def read(text: str) -> ModelCard:
    """Return a card. Raises ValueError if its front matter cannot be read."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        return ModelCard(text)
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:150]) from None


def scores(text: str) -> dict[tuple[str, str], float]:
    """Return the scores that a card claims: (data set, metric) → value. Raises ValueError."""
    found = read(text).data.get("eval_results") or []
    return {(str(one.dataset_name), str(one.metric_type)): one.metric_value for one in found}


def run_of(text: str) -> str:
    """Return the identity of the run that a card names, '' if it names none. Raises ValueError.

    Front matter and text must name the same.
    """
    card = read(text)
    found = str(card.data.get(RUN, ""))
    lines = _LINE.findall(card.text)
    if lines[-1:] != [_SEALED.format(found) if found else UNSEALED]:
        raise ValueError("its text and its front matter do not name one run")
    return found


def named(text: str, run: str) -> str:
    """Return a card that names the run of this identity, whatever it named before.

    Equal cards and identities give equal bytes. Raises ValueError if it is no card of ours.
    """
    card = read(text)
    places = list(_LINE.finditer(card.text))
    if not places:
        raise ValueError("no line of it is about the run")
    start, end = places[-1].span()
    card.text = f"{card.text[:start]}{_SEALED.format(run)}{card.text[end:]}"
    card.data[RUN] = run
    return str(card)
