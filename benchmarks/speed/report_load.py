"""How long a browser needs to open a report: python -m benchmarks.speed.report_load PAGE [RUNS].

A benchmark, not a test. It speaks the DevTools protocol with a headless Chromium through pipes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update",
         "--remote-debugging-pipe", "--window-size=1280,900"]
# After two frames the page stands on the screen, scripts have run and it answers to clicks.
TIMES = """new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
  const load = performance.getEntriesByType('navigation')[0];
  const paint = performance.getEntriesByName('first-contentful-paint')[0];
  done({firstPaint: paint ? paint.startTime : NaN, parsed: load.domContentLoadedEventEnd,
        load: load.loadEventEnd, drawn: performance.now()});
})))"""


class Browser:
    """A headless Chromium that takes one command after another."""

    def __init__(self, executable: str = "chromium"):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, executable, *FLAGS,
             f"--user-data-dir={self._profile.name}"],
            pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number = b"", 0

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._profile.cleanup()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {}))
                 .encode() + b"\0")
        answer = self._wait(lambda found: found.get("id") == self._number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait_for(self, event: str) -> None:
        """Wait for the next event of this kind."""
        self._wait(lambda found: found.get("method") == event)

    def _wait(self, wanted: Any) -> dict[str, Any]:
        while True:
            while b"\0" not in self._buffer:
                data = os.read(self._read, 1 << 20)
                if not data:
                    raise RuntimeError("the browser has closed.")
                self._buffer += data
            text, self._buffer = self._buffer.split(b"\0", 1)
            found = json.loads(text)
            if wanted(found):
                return found


def measure(browser: Browser, page: Path) -> dict[str, float]:
    """Milliseconds from the start of navigation, and the CPU time of the page's process."""
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    browser.call("Page.enable", session)
    browser.call("Performance.enable", session, timeDomain="threadTicks")
    browser.call("Page.navigate", session, url=page.resolve().as_uri())
    browser.wait_for("Page.loadEventFired")
    answer = browser.call("Runtime.evaluate", session, expression=TIMES, awaitPromise=True,
                          returnByValue=True)
    found = dict(answer["result"]["value"])
    metrics = {each["name"]: each["value"]
               for each in browser.call("Performance.getMetrics", session)["metrics"]}
    found["cpu"] = 1000 * metrics["ProcessTime"]
    browser.call("Target.closeTarget", targetId=target)
    return found


def main() -> None:
    page, runs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with Browser() as browser:
        measure(browser, page)  # the browser itself is starting up
        found = [measure(browser, page) for _ in range(runs)]
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"load average {load} on {os.cpu_count()} cores")
    print(f"{page.stat().st_size / 1e6:.1f} MB, median of {runs} (fastest to slowest), ms")
    for name in found[0]:
        values = sorted(each[name] or 0 for each in found)
        print(f"{name:11s} {statistics.median(values):6.0f}  ({values[0]:.0f} to {values[-1]:.0f})")


if __name__ == "__main__":
    main()
