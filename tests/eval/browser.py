"""Pages opened in headless Chromium."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def in_browser(page: str, folder: Path, width: int, script: str) -> Any:
    """The result of ``script`` about the page in a frame of ``width``: ``frame`` is its window, ``errors`` a list."""
    source = escape(page, quote=True)
    harness = folder / f"harness-{width}.html"
    harness.write_text(
        f"""<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe srcdoc="{source}" style="width:{width}px;height:900px;border:0"></iframe><pre id="result"></pre><script>
const errors = [];
document.querySelector("iframe").addEventListener("load", event => {{
  const frame = event.target.contentWindow;
  frame.addEventListener("error", error => errors.push(error.message));
  frame.document.addEventListener("securitypolicyviolation", found => errors.push(found.violatedDirective));
  document.getElementById("result").textContent = JSON.stringify((() => {{ {script} }})());
}});
</script>""",
        encoding="utf-8",
    )
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,1000",
    ]
    command += ["--virtual-time-budget=3000", "--dump-dom", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None
    return json.loads(unescape(found.group(1)))
