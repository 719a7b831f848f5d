"""Open a Snakemake report in headless Chromium and look at every figure, as a reader would.

Speaks WebDriver over HTTP to chromedriver (Debian: chromium, chromium-driver), nothing else.

    python tests/helpers/browser.py REPORT.html [SCREENSHOTS]
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Key of an element's id in WebDriver's JSON (W3C WebDriver, 11).
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_PATIENCE = 20.0


def missing() -> str:
    """Return why no browser can be started here, or ''."""
    for program, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver")):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian package {package})"
    return ""


class Browser:
    """A headless Chromium with an empty profile that can reach no network."""

    def __init__(self, width: int = 1440, height: int = 900) -> None:
        self._profile = tempfile.mkdtemp(prefix="mlcd-chromium-")
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._session = ""
        try:
            assert self._driver.stdout is not None
            said = iter(self._driver.stdout.readline, "")
            found = (re.search(r"started successfully on port (\d+)", line) for line in said)
            self._port = int(next(match[1] for match in found if match))
            options = {
                "args": [
                    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                    "--disable-dev-shm-usage", "--disable-background-networking",
                    "--disable-component-update", "--disable-sync",
                    # Whatever a page asks for by name is not found, and shows in the log.
                    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
                    f"--window-size={width},{height}", f"--user-data-dir={self._profile}",
                ],
            }  # fmt: skip
            wanted = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{answer['sessionId']}"
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End browser and driver, both started here, and remove the profile."""
        try:
            if self._session:
                self._call("DELETE", self._session)
        finally:
            self._driver.terminate()
            self._driver.wait(timeout=20)
            shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, path: Path) -> None:
        """Load a file."""
        self.visit(path.resolve().as_uri())

    def visit(self, url: str) -> None:
        """Load an address."""
        self._call("POST", f"{self._session}/url", {"url": url})

    def press(self, *keys: str) -> None:
        """Press and release keys, one after another; special ones as WebDriver numbers them."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self._call("POST", f"{self._session}/actions", {"actions": [source]})

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Show pages as in a window of this size, and in this color scheme; nothing moves."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce",
        }
        wanted = [{"name": name, "value": value} for name, value in features.items()]
        for command, parameters in (
            ("Emulation.setDeviceMetricsOverride", size),
            ("Emulation.setEmulatedMedia", {"features": wanted}),
        ):
            body = {"cmd": command, "params": parameters}
            self._call("POST", f"{self._session}/goog/cdp/execute", body)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page or frame and return what it returns."""
        return self._call(
            "POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)}
        )

    def wait(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript until it returns something true; None after 20 s."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if value := self.run(script, *arguments):
                return value
            time.sleep(0.05)
        return None

    def in_frame(self, look: Callable[[], None]) -> None:
        """Call `look` while the page's first iframe is the one that scripts run in."""
        frame = self.run("return document.querySelector('iframe')")
        self._call("POST", f"{self._session}/frame", {"id": {_ELEMENT: frame[_ELEMENT]}})
        try:
            look()
        finally:
            self._call("POST", f"{self._session}/frame", {"id": None})

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))

    def errors(self) -> list[str]:
        """Return the errors on the console since the last call."""
        lines = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [line["message"] for line in lines if line["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """Return the addresses on a network that were asked for since the last call."""
        lines = self._call("POST", f"{self._session}/se/log", {"type": "performance"})
        events = [json.loads(line["message"])["message"] for line in lines]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if re.match("(https?|wss?|ftp)://", url)]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise RuntimeError(f"{value['error']}: {value['message'].splitlines()[0]}")
        return value


@dataclass
class Figure:
    """One result of a report as it showed: `kind` image, page or download."""

    category: str
    path: str
    kind: str
    images: int = 0
    words: int = 0


#: The part of the window beside the menu (which holds an image of its own).
_CONTENT = "div.h-screen.overflow-auto"
_LOADED = "return [...document.images].every(image => image.complete)"
_BROKEN = "return [...document.images].filter(image => !image.naturalWidth).length"
#: Photographs, and charts that are part of the page.
_IMAGES = "return document.querySelectorAll('img, .chart > svg').length"
_WORDS = "return document.body.innerText.split(/\\s+/).filter(word => word).length"
_GRAPH = """
const canvas = document.querySelector('#rulegraph canvas');
if (!canvas || !canvas.width) return false;
const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
return data.some((value, index) => index % 4 == 3 && value > 0);
"""
#: Links of the workflow's description to categories, or to pages (data-page).
_LINKED = "[...document.querySelectorAll('.prose a[href^=\\'javascript:\\']')]"
_LINKS = f"return {_LINKED}.map(link => link.dataset.page || link.textContent)"
_SHOWN = """
return app.state.category == arguments[0]
    || app.state.resultPath?.endsWith('/' + arguments[0] + '.html');
"""
#: Click the item of the menu with this text; the click handlers are the report's own.
_MENU = """
const items = [...document.querySelectorAll('li > a')].filter(a => a.innerText == arguments[0]);
if (items.length) items[0].click();
return items.length;
"""
#: Click button number arguments[1] (0: eye, 1: description) of table row number arguments[0]; a
#: button that downloads is left alone, and the name of its file returned.
_BUTTON = """
const row = document.querySelectorAll('tbody tr')[arguments[0]];
const button = row && row.querySelectorAll('a')[arguments[1]];
if (button && button.download) return button.download;
if (button) button.click();
return Boolean(button);
"""


def check_report(path: Path, screenshots: Path | None = None) -> tuple[list[Figure], list[str]]:
    """Walk through all categories of an HTML report and view every figure.

    Returns the figures and the problems found: images that did not decode, empty pages, missing
    captions, an empty rule graph, errors on the console, requests to anywhere. With `screenshots`
    (a folder), a PNG of each view is left there.
    """
    figures: list[Figure] = []
    problems: list[str] = []

    def keep(browser: Browser, name: str) -> None:
        if screenshots is not None:
            screenshots.mkdir(parents=True, exist_ok=True)
            browser.wait("return document.getAnimations().every(a => a.playState != 'running')")
            browser.screenshot(screenshots / f"{re.sub('[^A-Za-z0-9]+', '-', name)}.png")

    def asked() -> None:
        # After each page: its address, of which the log has several copies, is the page itself.
        problems.extend(f"asked the network for {url}" for url in browser.requests())

    with Browser() as browser:
        browser.open(path)
        if not browser.wait(_GRAPH):
            problems.append("the rule graph is empty")
        if not browser.run("return workflow_desc.length"):
            problems.append("the workflow has no description")
        keep(browser, "0 workflow")
        categories = browser.run("return categories")
        for number, category in enumerate(browser.run(_LINKS)):
            browser.run("app.setView({content: 'rulegraph', resultPath: ' '})")
            browser.wait(f"return {_LINKED}.length > arguments[0]", number)
            # An <a> of SVG has no click() of its own.
            browser.run(f"{_LINKED}[arguments[0]].dispatchEvent(new MouseEvent('click', "
                        "{bubbles: true, cancelable: true}))", number)  # fmt: skip
            if not browser.wait(_SHOWN, category):
                problems.append(f"the description's link to {category} leads nowhere")
            asked()
        results = browser.run("return results")
        if not results:
            problems.append("the report has no figure")
        for category, groups in sorted(categories.items()):
            for group, paths in sorted(groups.items()):
                for row in range(len(paths)):
                    browser.run("app.setView({navbarMode: 'menu'})")
                    if not browser.wait(_MENU, category):
                        problems.append(f"{category}: not in the menu")
                        continue
                    if len(groups) > 1 and not browser.wait(_MENU, group):
                        problems.append(f"{category}: {group} is not in the menu")
                        continue
                    figure = _view(browser, category, row, results, problems)
                    figures.append(figure)
                    keep(browser, f"{category} {figure.path.rsplit('/', 1)[-1]}")
                    _caption(browser, figure, row, results, problems)
                    asked()
        shown = {figure.path for figure in figures}
        problems += [f"{result}: is not shown" for result in sorted(set(results) - shown)]
        problems += [f"console: {message}" for message in browser.errors()]
    return figures, problems


def _view(
    browser: Browser, category: str, row: int, results: dict[str, Any], problems: list[str]
) -> Figure:
    """Click a row's eye and look at what appears."""
    browser.run("app.setView({content: 'text', contentText: ' ', resultPath: ' '})")
    browser.wait(f"return !document.querySelector('{_CONTENT} iframe, {_CONTENT} img')")
    clicked = browser.wait(_BUTTON, row, 0)
    if isinstance(clicked, str):
        name = next(path for path, result in results.items() if result["name"] == clicked)
        return Figure(category, name, "download")
    name = str(browser.wait("return app.state.resultPath.trim()") or "")
    figure = Figure(category, name, "unknown")
    if name not in results:
        problems.append(f"{category}: nothing happens on a click in row {row + 1}")
    mime = results.get(name, {}).get("mime_type", "")
    if mime.startswith("image/"):
        figure.kind = "image"
        image = f"document.querySelector('{_CONTENT} img')"
        browser.wait(f"return {image}?.complete")
        figure.images = 1
        if not browser.run(f"return {image}?.naturalWidth"):
            problems.append(f"{name}: the image does not show")
    elif mime == "text/html":
        figure.kind = "page"
        browser.wait(f"return document.querySelector('{_CONTENT} iframe')")

        def look() -> None:
            # A page over a browser's limit for embedded ones is replaced by an empty one.
            browser.wait("return document.readyState == 'complete' && document.body")
            browser.wait(_LOADED)
            figure.images, figure.words = browser.run(_IMAGES), browser.run(_WORDS)
            if not figure.words:
                problems.append(f"{name}: the page is empty")
            if broken := browser.run(_BROKEN):
                problems.append(f"{name}: {broken} images do not show")

        browser.in_frame(look)
    return figure


def _caption(
    browser: Browser, figure: Figure, row: int, results: dict[str, Any], problems: list[str]
) -> None:
    """Click a row's description and see that the caption is on the screen, without template."""
    if not results.get(figure.path, {}).get("caption"):
        problems.append(f"{figure.path}: has no caption")
        return
    browser.run(_BUTTON, row, 1)
    said = browser.wait("return document.querySelector('.prose-invert')?.innerText") or ""
    if not said.strip():
        problems.append(f"{figure.path}: its caption does not show")
    if "{{" in said or "System Message" in said:
        problems.append(f"{figure.path}: its caption was not rendered")


if __name__ == "__main__":
    seen, wrong = check_report(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None)
    for item in seen:
        print(f"{item.category}: {item.path} ({item.kind}, {item.images} images)")
    sys.exit("\n".join(wrong) if wrong else 0)
