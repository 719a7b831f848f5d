"""A look at a run as one screen of text."""

from __future__ import annotations

from collections.abc import Iterator

from mlcd.commands.status.look import Gang, Look, Stage
from mlcd.utils.units import decimal_size, duration

#: State of a stage → its mark.
_MARKS = {"done": "✓", "before": "✓", "running": "▶", "failed": "✗", "waiting": "·"}
_WORDS = {
    "complete": "complete",
    "running": "running: {by}",
    "failed": "stopped by a failure; when it is fixed, the same command continues",
    "stopped": "not running, and not at its end; the same command continues",
    "empty": "no run has begun",
}
#: Failures, and nodes of a gang, that are told.
_MOST, _NODES = 5, 4


def screen(look: Look) -> str:
    """Return the lines that `mlcd status` prints."""
    return "\n".join(_lines(look))


def _lines(look: Look) -> Iterator[str]:
    yield f"{look.results}: {_WORDS[look.state].format(by=look.by)}"
    yield ""
    for stage in look.stages:
        yield _stage(stage)
        for line in stage.progress[:4]:
            yield f"      {line}"
        if len(stage.progress) > 4:
            yield f"      and {len(stage.progress) - 4} more"
    if look.training:
        yield ""
        yield _training(look.training)
        yield from _live(look.training)
    for gang in look.gangs:
        if gang.state != "finished":
            yield _gang(gang)
    if look.failures:
        yield ""
    for failure in look.failures[:_MOST]:
        name = f"{failure.rule} {failure.wildcards}".strip()
        yield f"failed: {name}: {failure.said or 'it said nothing'}"
        if failure.log:
            yield f"        {failure.log}"
    if len(look.failures) > _MOST:
        yield f"and {len(look.failures) - _MOST} more failures"
    yield ""
    used, free = decimal_size(look.disk["used"]), decimal_size(look.disk["free"])
    yield f"disk: {used} in {look.disk['files']:,} files, {free} free"


def _stage(stage: Stage) -> str:
    if stage.state == "before":
        return f"  {_MARKS[stage.state]} {stage.name:<9} done before"
    jobs = f"{stage.finished} of {stage.jobs} jobs" if stage.jobs > 1 else ""
    words = [
        stage.state if stage.state != "done" else "",
        jobs,
        f"{stage.running} running" if stage.running > 1 else "",
        f"{stage.failed} failed" if stage.failed else "",
        duration(stage.seconds) if stage.seconds else "",
        f"{duration(stage.left)} left" if stage.left else "",
    ]
    return f"  {_MARKS[stage.state]} {stage.name:<9} {', '.join(filter(None, words))}".rstrip()


def _training(line: dict[str, object]) -> str:
    said = [f"step {line.get('step')}"]
    for key, word in (("loss", "loss"), ("lr", "lr"), ("feature_cosine", "feature cosine"),
                      ("images_per_s", "images/s")):  # fmt: skip
        value = line.get(key)
        if isinstance(value, (int, float)):
            said.append(f"{word} {value:.4g}")
    share = line.get("data_wait_share")
    if isinstance(share, (int, float)):
        said.append(f"{share:.0%} of the time waiting for images")
    return f"training: {', '.join(said)}"


def _live(line: dict[str, object]) -> Iterator[str]:
    """Say the last score that was taken while it trained, and why no more are taken."""
    live = line.get("live")
    if isinstance(live, dict):
        scores = [
            f"{name} {value:.4g}"
            for name, value in live.items()
            if name.startswith("knn_") and isinstance(value, (int, float))
        ]
        yield f"live scores: step {live.get('step')} on {live.get('dataset')}: {', '.join(scores)}"
    if why := line.get("live_failed"):
        yield f"live scores: none any more: {why}"


def _gang(gang: Gang) -> str:
    words = [f"{gang.started} of {gang.ranks} ranks started"]
    if gang.finished:
        words.append(f"{gang.finished} finished")
    if gang.silence is not None:
        words.append(f"last sign of life {duration(gang.silence)} ago")
    if gang.failure:
        words.append(gang.failure)
    if gang.nodes:
        more = f" and {len(gang.nodes) - _NODES} more" if len(gang.nodes) > _NODES else ""
        words.insert(0, f"on {', '.join(gang.nodes[:_NODES])}{more}")
    job = f"{gang.launcher} job {gang.job or '(not submitted yet)'}"
    return f"gang of {gang.output}: {job}, {gang.state}: {', '.join(words)}"
