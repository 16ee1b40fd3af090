"""Pages looked at by a real browser, headless and with no driver: what axe-core says of one, and how it is laid out."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing is looked up, updated or kept, and it runs as root too.
_FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars""".split()
# A window has a least width, a frame in it has none. What the page's script finds is left in the window's own document.
_WINDOW = """<!doctype html><meta charset="utf-8"><style>:root {{ color-scheme: light dark }}</style>
<iframe style="border:0; width:{width}px; height:900px" srcdoc="{page}"></iframe>"""
_LOOK = """<script>{axe}</script><script>
addEventListener("load", async () => {{
  let found;
  try {{ found = await (async () => {{ {script} }})() }} catch (error) {{ found = {{ error: String(error) }} }}
  const said = parent.document.createElement("pre");
  said.id = "found";
  said.textContent = JSON.stringify(found);
  parent.document.body.append(said);
}})
</script>"""


@cache
def chromium() -> str | None:
    """Where a browser of this family is."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def needs_browser() -> None:
    """Skip the test where there is no browser or no axe-core; fail it where BROWSER_TESTS=required."""
    lacking = [name for name, there in (("Chromium", chromium()), ("axe-core (npm)", AXE.exists())) if not there]
    if lacking:
        stop = pytest.fail if os.environ.get("BROWSER_TESTS") == "required" else pytest.skip
        stop(f"{' and '.join(lacking)} not installed")


def browse(*arguments: str, folder: Path) -> str:
    """Run the browser once, with a profile of its own in `folder`; what it prints."""
    browser = chromium()
    assert browser is not None
    command = [browser, *_FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def look(page: str, script: str, folder: Path, *, width: int = 1280, dark: bool = False) -> Any:
    """What a script's `return` gives in a page of this width; it may await, and axe is there.

    Raises
    ------
    AssertionError : the script raised, or came to no end.
    """
    scripts = _LOOK.format(axe=AXE.read_text(encoding="utf-8"), script=script)
    assert "</body>" in page
    window = _WINDOW.format(width=width, page=html.escape(page.replace("</body>", scripts + "</body>")))
    (folder / "window.html").write_text(window, encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    address = (folder / "window.html").resolve().as_uri()
    printed = browse(
        "--window-size=1400,1000", scheme, "--virtual-time-budget=60000", "--dump-dom", address, folder=folder
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', printed, re.DOTALL)
    assert found, f"the page's script came to no end: {printed[-500:]}"
    told = json.loads(html.unescape(found[1]))
    assert not (isinstance(told, dict) and "error" in told), told
    return told


def violations(page: str, folder: Path, *, width: int = 1280, dark: bool = False) -> list[str]:
    """What axe-core's rules, best practices among them, find wrong: a line each."""
    script = """
      document.querySelectorAll("details").forEach(one => { one.open = true });
      const told = await axe.run(document);
      return told.violations.flatMap(v => v.nodes.map(n => `${v.id}: ${n.target.join(" ")}: ${n.failureSummary}`));
    """
    found: list[str] = look(page, script, folder, width=width, dark=dark)
    return found
