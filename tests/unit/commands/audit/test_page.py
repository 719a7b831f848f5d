"""The page "Audit": the chain of a sealed run as a graph whose boxes open."""

from __future__ import annotations

import itertools
import re

import pytest

from helpers.audit_changes import audit
from helpers.exported_runs import seal, write_run
from helpers.report_stores import HOSTILE, Outline
from mlcd.commands.audit import lanes, lock, page
from mlcd.commands.audit.nodes import BYTES, CONTENT, Node
from mlcd.utils.records import read_record

SYSTEM = {"mlcd": "0.1.0", "python": "3.11", "platform": "Linux", "libc": "glibc"}


def sealed(nodes: list[Node], **more) -> tuple[dict, dict[str, Node]]:
    value = {"root": "ab" * 32, "inputs": [], "stages": {}, "not_locked": [], **more}
    return value, {node.path: node for node in nodes}


def drawn(nodes: list[Node], system: dict = SYSTEM, **more) -> str:
    return page.html(*sealed(nodes, **more), system)


def large() -> list[Node]:
    """A run of 920 chunks and 40,480 tars."""
    nodes = []
    for number in range(920):
        chunk = f"laion400m-{number:05d}"
        urls, images, vectors = (f"{number:060d}{kind}" for kind in ("0a0a", "0b0b", "0c0c"))
        nodes += [
            Node(f"urls/{chunk}.json", "prepare", urls, CONTENT, 500),
            *(Node(f"images/{chunk}/{tar:05d}.tar", "download", f"{number:05d}{tar:059d}", BYTES,
                   300_000_000, (urls,)) for tar in range(44)),
            Node(f"images/{chunk}/manifest.json", "download", images, CONTENT, 9000, (urls,)),
            Node(f"embeddings/{chunk}.h5", "embed", vectors, CONTENT, 10**9, (images,)),
            Node(f"labels/{chunk}.h5", "label", f"{number:060d}0d0d", CONTENT, 10**8,
                 (vectors, "e" * 64)),
        ]  # fmt: skip
    nodes.append(Node("clusters/centroids.h5", "cluster", "e" * 64, CONTENT, 2 * 10**9))
    return nodes


def test_a_run_of_40_000_tars_is_folded():
    nodes = large()
    inputs = [
        {"name": "a.parquet", "hash": "f" * 64, "of": BYTES, "bytes": 9},
        {"name": "photos", "hash": "d" * 16, "of": "the data set's files", "identities": ["d"]},
    ]
    html = drawn(nodes, inputs=inputs)
    assert len(html.encode()) < 100_000
    outline = Outline(html)
    assert outline.tags.count("details") == 6
    words = " ".join(outline.words)
    assert f"Sealed: {len(nodes):,} files, 920 chunks of images." in words
    # A data set has no size; "0 B" would be wrong.
    assert "0 B" not in outline.words and "9 B" in outline.words
    assert "and 40,476 more" in words and "40,480 files" in words
    assert "920 files of stage prepare" in words and "the inputs" in words


def test_nothing_runs_and_nothing_is_fetched():
    outline = Outline(drawn(large()))
    assert "script" not in outline.tags and outline.addresses == []


def test_words_of_strangers_stay_words():
    name = f"lists/{HOSTILE}.parquet"
    html = drawn(
        [Node(f"evaluate/features/{HOSTILE}.h5", "evaluate", "a" * 64, CONTENT, 1)],
        {**SYSTEM, "processor": {"model": HOSTILE}},
        inputs=[{"name": name, "hash": HOSTILE, "of": HOSTILE, "bytes": 3}],
        stages={"evaluate": {"section": {HOSTILE: HOSTILE}, "code": HOSTILE, "how": {}}},
        not_locked=[HOSTILE],
    )
    outline = Outline(html)
    assert "script" not in outline.tags
    # As text, in each of the places.
    assert html.count("&lt;script&gt;") >= 7


def test_the_page_of_a_run_shows_its_hashes_and_equal_seals_give_equal_pages(tmp_path):
    results = tmp_path / "results"
    write_run(results)
    root = seal(results)
    before = (results / page.PAGE).read_bytes()
    words = Outline(before.decode()).words
    text = " ".join(words)
    value = read_record(results / lock.LOCK, "audit")
    assert root in words
    assert value["files"]["train/encoder.safetensors"]["hash"] in words
    assert {value["beside"][name] for name in ("code.json", "system.json")} <= set(words)
    assert "1 file of stage train" in text and "lr: 0.1" in text
    seal(results)
    assert (results / page.PAGE).read_bytes() == before


def test_an_edited_page_is_found_and_one_of_somebody_else_is_not_replaced(tmp_path, capsys):
    results = tmp_path / "results"
    write_run(results)
    seal(results)
    path = results / page.PAGE
    path.write_text(path.read_text().replace("Encoder", "Encodes"))
    status, said = audit("verify", str(results))
    assert status == 1 and "audit/chain.html: not what was sealed" in said
    path.write_text("<p>mine</p>")
    assert audit("seal", str(results))[0] == 2
    assert path.read_text() == "<p>mine</p>"


def test_a_modified_tree_is_told():
    revision = {"commit": "1" * 40, "modified": True}
    assert "source.diff" in drawn(large()[:1], {**SYSTEM, "revision": revision})
    assert "source.diff" not in drawn(large()[:1], {**SYSTEM, "revision": None})


GRAPHS = {
    "a line": {"b": ["a"], "c": ["b"], "d": ["c"]},
    "all of the first": {"b": ["a"], "c": ["a"], "d": ["a"]},
    "a run": {"b": ["a"], "c": ["b"], "d": ["c"], "e": ["c", "d"], "f": ["b", "e"], "g": ["f"],
              "h": ["f", "g"], "i": ["f"]},
    "not above": {"a": ["b"], "b": ["b"], "c": ["none"]},
}  # fmt: skip


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_lines_lead_to_all_that_was_made_of_a_row_and_never_lie_on_each_other(graph):
    rows = list("abcdefghi")
    lines = lanes.lay(rows, {name: dict.fromkeys(sources, 1) for name, sources in graph.items()})
    found = {(rows[lane.start], rows[end]) for lane in lines for end in lane.ends}
    wanted = {(source, name) for name, sources in graph.items() for source in sources
              if source in rows and source < name}  # fmt: skip
    assert found == wanted
    for one, other in itertools.combinations(lines, 2):
        if one.column == other.column:
            assert one.last < other.start or other.last < one.start


def test_a_line_goes_on_beside_a_box_that_is_open():
    lines = lanes.lay(list("abc"), {"c": {"a": 1}})
    heights = [lanes.tail(lines, row) != "" for row in range(3)]
    assert heights == [True, True, False]
    # From the dot of the first row down, through the second, to that of the last.
    ends = [re.findall(r'd="M\d+ (\d+)L\d+ (\d+)"', lanes.head(lines, row)) for row in range(3)]
    leaves, comes, full = str(lanes.OUT), str(lanes.IN), str(lanes.HEAD)
    assert (leaves, full) in ends[0] and ends[1] == [("0", full)] and ("0", comes) in ends[2]
