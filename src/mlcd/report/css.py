"""The style sheet of all pages; Python, so that an edit counts as an edit of the stage's code."""

CSS = """\
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; padding: 28px 32px 48px; background: #fff; color: #1f2933;
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; }
h1 { font-size: 22px; line-height: 1.25; margin: 0 0 6px; }
h2 { font-size: 16px; margin: 28px 0 8px; }
p { margin: 0 0 14px; max-width: 78ch; }
.lead { color: #5b6570; }
.warn { border-left: 4px solid #d55e00; background: #fdf3ec; padding: 8px 12px; }
code, pre { font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre { background: #f5f7f9; padding: 12px 14px; border-radius: 6px; overflow-x: auto; }
img.chart { display: block; width: 100%; height: auto; margin: 8px 0 20px; }
.beside { display: flex; flex-wrap: wrap; gap: 0 56px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin: 4px 0 18px; }
th, td { padding: 5px 14px 5px 0; text-align: left; border-bottom: 1px solid #e3e7eb;
  vertical-align: top; }
th { color: #5b6570; font-weight: 600; border-bottom-color: #b8c0c8; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.best { font-weight: 700; color: #00537f; }
tr.total td { font-weight: 600; border-top: 1px solid #b8c0c8; }
td code { overflow-wrap: anywhere; }
section { border-top: 1px solid #e3e7eb; padding: 14px 0 10px; }
section > h2 { margin: 0 0 8px; font-size: 15px; }
section > h2 small, figcaption small { font-weight: 400; color: #5b6570; }
.strip { display: flex; flex-wrap: wrap; gap: 8px; }
.tile { display: flex; align-items: center; justify-content: center; background: #fff;
  border: 1px solid #e3e7eb; border-radius: 6px; overflow: hidden; flex: none; }
.tile img { max-width: 100%; max-height: 100%; display: block; }
.tile.lost { background: #e3e7eb; color: #5b6570; font-size: 11px; text-align: center; }
.example { display: grid; grid-template-columns: 170px 1fr; gap: 20px; align-items: start; }
.labels { display: flex; flex-wrap: wrap; gap: 14px; }
figure { margin: 0; }
figcaption { font-size: 12.5px; line-height: 1.35; margin-top: 6px; overflow-wrap: anywhere; }
.quad { display: grid; grid-template-columns: repeat(2, 70px); gap: 4px; }
"""
