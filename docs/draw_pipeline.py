"""Draw docs/pipeline.svg, the figure of the pipeline: python docs/draw_pipeline.py

It stands on a light card of its own, so that it reads the same on a dark page.
"""

from __future__ import annotations

import math
import random
from html import escape
from pathlib import Path

OUTPUT = Path(__file__).with_name("pipeline.svg")

WIDTH, MARGIN, GAP = 1160, 26, 30
CARD, HEIGHT = 198, 196
TOP = 30
SECOND = TOP + HEIGHT + 62
INK, MUTED, LINE = "#1f2933", "#57606a", "#c3cad2"
GROUPS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
#: How a stage runs → color of its bar and words of the legend.
RUNS = {
    "chunk": ("#0072b2", "one job per chunk, hundreds at once"),
    "gang": ("#d55e00", "one gang job, N ranks on N GPUs"),
    "single": ("#8a8f98", "one job, or one per model"),
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


class Canvas:
    """Collects SVG elements; coordinates in pixels of an image WIDTH wide."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def add(self, tag: str, content: str = "", **attributes: object) -> None:
        words = " ".join(
            f'{name.rstrip("_").replace("_", "-")}="{_plain(value)}"'
            for name, value in attributes.items()
        )
        self.parts.append(f"<{tag} {words}>{content}</{tag}>" if content else f"<{tag} {words}/>")

    def text(self, x: float, y: float, words: str, **attributes: object) -> None:
        self.add("text", escape(words, quote=False), x=x, y=y, **attributes)

    def rect(self, x: float, y: float, w: float, h: float, fill: str, **attributes: object) -> None:
        self.add("rect", x=x, y=y, width=w, height=h, fill=fill, **attributes)

    def circle(self, x: float, y: float, r: float, fill: str, **attributes: object) -> None:
        self.add("circle", cx=x, cy=y, r=r, fill=fill, **attributes)

    def path(self, d: str, **attributes: object) -> None:
        self.add("path", d=d, **attributes)


def _plain(value: object) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def urls(c: Canvas, x: float, y: float) -> None:
    """A list cut into chunks."""
    for block in range(3):
        top = y + block * 24
        c.rect(x + 26, top, 146, 19, "#eef2f6", rx=4)
        for line in range(2):
            width = (96, 74, 108, 84, 66, 100)[block * 2 + line]
            c.rect(x + 34, top + 5 + line * 6, width, 3, "#9aa7b4", rx=1.5)
    c.path(
        f"M{x + 18} {y + 21.5}h162M{x + 18} {y + 45.5}h162",
        stroke=RUNS["chunk"][0], stroke_dasharray="4 3", fill="none",
    )  # fmt: skip


def image(c: Canvas, x: float, y: float, side: float, group: int) -> None:
    """A small image of a kind: house, sun, tree, fish."""
    tint = ("#dcecf7", "#fbf0d9", "#dcf1ea", "#f7e8f0")[group]
    c.rect(x, y, side, side, tint, rx=3)
    s, fill = side / 20, GROUPS[group]
    shape = (
        "M10 4L3.5 10H5.5V16H14.5V10H16.5Z",
        "M10 6A4 4 0 1 1 9.99 6M10 2.5V4.5M10 15.5V17.5M2.5 10H4.5M15.5 10H17.5"
        "M4.7 4.7L6.1 6.1M13.9 13.9L15.3 15.3M4.7 15.3L6.1 13.9M13.9 6.1L15.3 4.7",
        "M10 3L4.5 12.5H8.8V17H11.2V12.5H15.5Z",
        "M3.5 10C6.5 5 11.5 5 14 9L17 6.5V13.5L14 11C11.5 15 6.5 15 3.5 10Z",
    )[group]
    stroke = {"stroke": fill, "stroke_width": 1.4} if group == 1 else {}
    c.path(shape, fill=fill, transform=f"translate({x:.1f} {y:.1f}) scale({s:.2f})", **stroke)


def images(c: Canvas, x: float, y: float) -> None:
    """Images in a grid; one did not arrive."""
    kinds = (0, 2, 1, 3, 1, 0, 3, 2, 2, 1, 0, 3, 0, 2, 1)
    for index, kind in enumerate(kinds):
        px, py = x + 37 + index % 5 * 25, y + index // 5 * 24
        if index == 8:
            c.rect(px, py, 20, 20, "none", rx=3, stroke=LINE, stroke_dasharray="3 2")
        else:
            image(c, px, py, 20, kind)


def features(c: Canvas, x: float, y: float) -> None:
    """A frozen encoder turns an image into a row of numbers."""
    image(c, x + 14, y + 22, 26, 0)
    c.path(f"M{x + 52} {y + 10}L{x + 92} {y + 22}V{y + 48}L{x + 52} {y + 60}Z", fill="#dde5ec")
    c.text(x + 72, y + 39, "frozen", font_size=11, fill=MUTED, text_anchor="middle")
    rng = random.Random(4)
    for row in range(5):
        for column in range(8):
            shade = 0.15 + 0.85 * rng.random()
            c.rect(
                x + 104 + column * 10, y + 11 + row * 10, 9, 9, GROUPS[0],
                fill_opacity=round(shade, 2),
            )  # fmt: skip


def clusters(c: Canvas, x: float, y: float) -> None:
    """Points around their centers."""
    rng = random.Random(11)
    centers = ((44, 20), (104, 14), (152, 44), (84, 54))
    for group, (cx, cy) in enumerate(centers):
        for _ in range(13):
            angle, far = rng.random() * math.tau, 4 + 15 * rng.random() ** 0.8
            px, py = cx + far * math.cos(angle) * 1.25, cy + far * math.sin(angle) * 0.8
            c.circle(x + px, y + py, 2.6, GROUPS[group], fill_opacity=0.55)
        c.path(
            f"M{x + cx - 5} {y + cy}h10M{x + cx} {y + cy - 5}v10",
            stroke=INK, stroke_width=2.2, fill="none",
        )  # fmt: skip


def labels(c: Canvas, x: float, y: float) -> None:
    """An image and its l nearest clusters."""
    c.rect(x + 16, y + 8, 56, 56, "#eef2f6", rx=5)
    image(c, x + 22, y + 12, 26, 0)
    image(c, x + 42, y + 34, 26, 2)
    for rank, (group, name) in enumerate(((0, "0.81"), (2, "0.77"), (1, "0.52"))):
        py = y + 6 + rank * 21
        c.rect(x + 92, py, 84, 17, GROUPS[group], rx=8.5, fill_opacity=round(1 - 0.25 * rank, 2))
        ink = INK if group == 1 else "#ffffff"
        c.text(x + 134, py + 12.5, name, font_size=11.5, fill=ink, text_anchor="middle")


def training(c: Canvas, x: float, y: float) -> None:
    """An encoder, and class centers held in pieces by the ranks: positives pull, negatives push."""
    image(c, x + 18, y + 22, 26, 0)
    c.path(f"M{x + 58} {y + 6}L{x + 112} {y + 20}V{y + 50}L{x + 58} {y + 64}Z", fill="#f7ddcd")
    c.text(x + 85, y + 39, "encoder", font_size=11.5, fill="#8a3a00", text_anchor="middle")
    c.path(f"M{x + 116} {y + 35}h24", stroke=MUTED, stroke_width=1.6, fill="none")
    fx, fy = x + 150, y + 35
    c.circle(fx, fy, 6, INK)
    rng = random.Random(3)
    positive = {4, 5, 12}
    places = [
        (x + 248 + index // 5 * 56 + rng.random() * 10, y + 3 + index % 5 * 12.5)
        for index in range(15)
    ]
    for index in sorted(positive):
        px, py = places[index]
        c.path(f"M{fx + 8} {fy}L{px:.1f} {py}", stroke="#009e73", stroke_width=1.8, fill="none")
    for index, (px, py) in enumerate(places):
        others = "#d5dbe1" if index % 4 == 3 else "#d55e00"
        c.circle(px, py, 4.4, "#009e73" if index in positive else others)
    for column in range(3):
        left = x + 254 + column * 56
        c.text(left, y + 74, f"rank {column}", font_size=11.5, fill=MUTED, text_anchor="middle")
        if column:
            c.path(f"M{left - 28} {y - 4}v80", stroke=LINE, stroke_dasharray="3 3", fill="none")


def bars(c: Canvas, x: float, y: float) -> None:
    """Three models side by side."""
    for row, (width, fill) in enumerate(((48, "#c3c9d0"), (62, "#8a8f98"), (118, "#0072b2"))):
        c.rect(x + 36, y + 8 + row * 20, width, 14, fill, rx=2)
    c.path(f"M{x + 36} {y + 2}v66", stroke=LINE, fill="none")


def boxed(c: Canvas, x: float, y: float) -> None:
    """The encoder, packed for others."""
    c.path(f"M{x + 56} {y + 14}L{x + 100} {y + 25}V{y + 47}L{x + 56} {y + 58}Z", fill="#f7ddcd")
    c.path(
        f"M{x + 110} {y + 36}h30m-9 -8l9 8l-9 8", stroke=INK, stroke_width=2, fill="none",
        stroke_linecap="round", stroke_linejoin="round",
    )  # fmt: skip
    c.rect(x + 36, y + 4, 84, 64, "none", rx=6, stroke=MUTED, stroke_width=1.4)


def sheet(c: Canvas, x: float, y: float) -> None:
    """A page with a curve and images."""
    c.rect(x + 54, y, 90, 72, "#ffffff", rx=4, stroke=MUTED, stroke_width=1.3)
    c.path(
        f"M{x + 62} {y + 10}C{x + 76} {y + 34} {x + 96} {y + 36} {x + 136} {y + 38}",
        stroke="#0072b2", stroke_width=2.2, fill="none",
    )  # fmt: skip
    for index in range(3):
        image(c, x + 62 + index * 26, y + 46, 20, index)


#: Stage, how it runs, glyph, what it does (two lines), what it leaves; train is two columns wide.
STAGES = (
    ("prepare", "chunk", urls, "cut folders and URL|lists into chunks", "urls/{chunk}.parquet"),
    ("download", "chunk", images, "img2dataset, retries,|tars proven whole",
     "images/{chunk}/*.tar"),
    ("embed", "chunk", features, "a frozen encoder's|features", "embeddings/{chunk}.h5"),
    ("cluster", "single", clusters, "spherical k-means over|all chunks", "clusters/centroids.h5"),
    ("label", "chunk", labels, "l nearest centers|of every image", "labels/{chunk}.h5"),
    ("train", "gang", training, "DeepSpeed ZeRO encoder, classifier sharded over ranks:|"
     "to l positive centers, away from sampled negatives", "train/encoder.safetensors"),
    ("evaluate", "single", bars, "k-NN, linear probe,|mAP, beside baselines",
     "evaluate/summary.csv"),
    ("report", "single", sheet, "one HTML file:|images and curves", "report.html"),
    ("export", "single", boxed, "timm, open_clip,|equal outputs checked", "export/{format}/"),
)  # fmt: skip


def card(c: Canvas, x: float, y: float, width: float, stage: tuple) -> None:
    """Draw one stage."""
    name, runs, glyph, about, output = stage
    color = RUNS[runs][0]
    c.rect(x, y, width, HEIGHT, "#ffffff", rx=10, stroke=LINE, stroke_width=1.2)
    c.rect(x + 14, y + 17, 5, 17, color, rx=2.5)
    c.text(x + 27, y + 31.5, name, font_size=18, font_weight=650, fill=INK)
    glyph(c, x, y + 47)
    for line, words in enumerate(about.split("|")):
        c.text(x + 14, y + 143 + line * 17, words, font_size=14, fill=MUTED)
    c.text(x + 14, y + 184, output, font_size=12, fill=INK, font_family=MONO)


def arrow(c: Canvas, path: str) -> None:
    c.path(path, stroke="#6b7785", stroke_width=2, fill="none", marker_end="url(#head)",
           stroke_linejoin="round")  # fmt: skip


def draw() -> str:
    """Return the whole image."""
    c = Canvas()
    height = SECOND + HEIGHT + 78
    c.rect(0.5, 0.5, WIDTH - 1, height - 1, "#f6f8fa", rx=14, stroke="#d0d7de")
    step = CARD + GAP
    middle = HEIGHT / 2
    for index, stage in enumerate(STAGES):
        column, y = (index, TOP) if index < 5 else (index - 5 + (index > 5), SECOND)
        width = 2 * CARD + GAP if stage[0] == "train" else CARD
        card(c, MARGIN + column * step, y, width, stage)
    for column in range(4):
        x = MARGIN + column * step + CARD
        arrow(c, f"M{x + 4} {TOP + middle}h{GAP - 12}")
    for column in (1, 2):
        x = MARGIN + column * step + CARD
        arrow(c, f"M{x + 4} {SECOND + middle}h{GAP - 12}")
    below = SECOND + HEIGHT
    arrow(
        c, f"M{MARGIN + CARD + GAP / 2} {below + 4}v18H{MARGIN + 4.5 * step - GAP / 2}V{below + 8}"
    )
    # Labels wrap to the second row; images go to training too.
    last, train = MARGIN + 4 * step + CARD / 2, MARGIN + CARD + GAP / 2
    turn = TOP + HEIGHT + 31
    arrow(c, f"M{last} {TOP + HEIGHT + 4}V{turn}H{train}V{SECOND - 8}")
    c.path(
        f"M{MARGIN + step + CARD / 2} {TOP + HEIGHT + 4}V{turn}", stroke="#6b7785", stroke_width=2,
        fill="none",
    )  # fmt: skip
    for x, words in ((last - 8, "labels"), (MARGIN + step + CARD / 2 + 62, "images")):
        c.text(x, turn - 8, words, font_size=13, fill=MUTED, text_anchor="end")
    x = MARGIN + 4.0
    for color, words in RUNS.values():
        c.rect(x, height - 33, 5, 17, color, rx=2.5)
        c.text(x + 13, height - 19.5, words, font_size=14, fill=MUTED)
        x += 7.1 * len(words) + 52
    about = (
        f"The pipeline: {', '.join(stage[0] for stage in STAGES)}. "
        "Each stage is a rule and a program of the same name."
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" aria-label="{about}" '
        f'font-family="{FONT}">\n<title>{about}</title>\n'
        '<defs><marker id="head" viewBox="0 0 10 10" refX="7" refY="5" markerWidth="6.5" '
        'markerHeight="6.5" orient="auto"><path d="M0 0.6L9 5L0 9.4Z" fill="#6b7785"/></marker>'
        "</defs>\n"
    )
    return head + "\n".join(c.parts) + "\n</svg>\n"


if __name__ == "__main__":
    OUTPUT.write_text(draw(), encoding="utf-8")
