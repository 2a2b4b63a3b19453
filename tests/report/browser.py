"""Pages in a real browser."""

import json
import re
import shutil
import subprocess

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def run_in_browser(page: str, tmp_path, milliseconds: int) -> dict:
    """Open a page whose script sets the title to RESULT, a JSON object and END; the object."""
    # the page's own policy lets no script run but its own
    page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    (tmp_path / "page.html").write_text(page)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}",
               f"--virtual-time-budget={milliseconds}", "--dump-dom",
               f"file://{tmp_path / 'page.html'}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"RESULT(\{.*?\})END", dom)
    assert found, dom[:500]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
