"""Pages in a real browser."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def chromium(tmp_path, *arguments) -> str:
    """What Chromium prints."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def run_in_browser(page: str, tmp_path, milliseconds: int) -> dict:
    """Open a page whose script sets the title to RESULT, a JSON object and END; the object."""
    # the page's own policy lets no script run but its own
    page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    (tmp_path / "page.html").write_text(page)
    dom = chromium(tmp_path, f"--virtual-time-budget={milliseconds}", "--dump-dom",
                   f"file://{tmp_path / 'page.html'}")
    found = re.search(r"RESULT(\{.*?\})END", dom)
    assert found, dom[:500]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


class Keyboard:
    """A page in Chromium that real keys are pressed in, over its debugging pipe.

    Source: the Chrome DevTools Protocol, ``Input.dispatchKeyEvent`` and ``Runtime.evaluate``.
    """

    CODES = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}

    def __init__(self, page: Path, tmp_path: Path):
        command_end, self._commands = os.pipe()
        self._answers, answer_end = os.pipe()
        # Chromium reads commands from descriptor 3, and writes to 4
        script = f'exec "$0" "$@" 3<&{command_end} 4>&{answer_end}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'keys'}",
             "--remote-debugging-pipe", f"file://{page}"],
            pass_fds=(command_end, answer_end), stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(command_end)
        os.close(answer_end)
        self._left, self._count, self._session = b"", 0, {}
        targets = self._call("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        found = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": found["sessionId"]}

    def __enter__(self):
        # at first there is an empty page, which is complete too
        loaded = "location.protocol === 'file:' && document.readyState === 'complete'"
        while not self.evaluate(loaded):
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def press(self, key: str, times: int = 1) -> None:
        """Press and release a key of `CODES`."""
        code = self.CODES[key]
        text = {"Enter": "\r", " ": " "}.get(key)
        for _ in range(times):
            for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
                self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                           windowsVirtualKeyCode=code, **({"text": text} if text else {}))

    def evaluate(self, expression: str):
        """The value of a JavaScript expression."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def _call(self, method: str, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._left:
                more = os.read(self._answers, 1 << 16)
                assert more, "Chromium ended"
                self._left += more
            line, self._left = self._left.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
