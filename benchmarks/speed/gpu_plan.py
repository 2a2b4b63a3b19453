"""All that one GPU can tell, part by part; each in a process of its own, with a limit of time.

What a part has found lies in a file as soon as it ends. The same command goes on where it was
interrupted, and tries parts again that failed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.provenance import commit, machine_and_torch

# Parts, the most telling first, and how many seconds each may take.
LIMITS = {
    "speed_sd15": 300, "exactness": 120, "memory": 90, "compile": 240, "spawn_workers": 300,
    "speed_sdxl": 180, "speed_sd3": 150, "tests": 600,
}  # fmt: skip
ROOT = Path(__file__).parents[2]


def run_plan(
    folder: Path, device: str, toy: bool = False, only: Sequence[str] | None = None,
    seconds: float = 1500,
) -> dict[str, Any]:
    """Run the parts that are not done yet.

    Args:
        folder: where each part leaves ``PART.json``.
        device: where they run.
        toy: narrow models and few tests, to try the plan itself.
        only: some of the parts; None: all.
        seconds: for all parts together; what no time is left for waits for the next call.

    Returns:
        What each part has found, by its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end, found = time.monotonic() + seconds, {}
    for name in only or LIMITS:
        path = folder / f"{name}.json"
        if path.exists() and (kept := json.loads(path.read_text()))["state"] == "done":
            found[name] = kept
            continue
        left = min(LIMITS[name], end - time.monotonic())
        if left <= 0:
            print(f"{name}: no time left; the same command goes on here", flush=True)
            continue
        found[name] = _run(name, path, device, toy, left)
        print(f"{name}: {found[name]['state']}, {found[name]['seconds']} s", flush=True)
    return found


def _run(name: str, path: Path, device: str, toy: bool, limit: float) -> dict[str, Any]:
    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.speed.gpu_parts", name, "--device", device,
               "--out", str(path.parent.resolve()), *(["--toy"] if toy else [])]
    result = path.with_suffix(".result.json")
    result.unlink(missing_ok=True)
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        state = "done" if done.returncode == 0 and result.exists() else "failed"
        said = done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        state = "out of time"
        said = "".join(part.decode() if isinstance(part, bytes) else part or ""
                       for part in (error.stdout, error.stderr))
    record = {
        "part": name, "state": state, "seconds": round(time.monotonic() - started, 1),
        "device": device, "machine": machine_and_torch(device), "commit": commit(), "toy": toy,
        "said": said[-4000:],
        "result": json.loads(result.read_text()) if result.exists() else None,
    }
    result.unlink(missing_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    return record
