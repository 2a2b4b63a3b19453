"""All that one GPU can tell in nine minutes, part by part, the most telling first.

    python -m benchmarks.gpu results/gpu                      # on the GPU; again: it resumes
    python -m benchmarks.gpu build/try --device cpu --tiny    # tries every part, proves no speed
    benchmarks/gpu/prepare.sh build/gpu                       # all that a bare machine needs

Each part runs in a process of its own, with a limit of time. What it found lies in OUT/results.json
as soon as it ends; the same command runs what is not done yet. The prior of CIFAR-10 lies in
OUT/cifar10.zip, and resumes from its checkpoint in ``--work``.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.provenance import commit, machine_and_torch
from dreamda_aug.files import write_atomically

# Parts in the order in which they run, and how many seconds each may take.
LIMITS = {"exactness": 40, "sd15": 75, "sd15_compiled": 60, "sdxl": 45, "sd3": 45, "cifar10": 240,
          "workers": 35}
ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the parts that are not done; what each has found, by its name."""
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    end = time.monotonic() + 60 * args.minutes
    for name in args.only or LIMITS:
        if found.get(name, {}).get("state") == "done":
            continue
        # imports alone take long on a loaded CPU
        left = min(LIMITS[name] * (4 if args.tiny else 1), end - time.monotonic())
        if left <= 0:
            print(f"{name}: no time left; the same command resumes here", flush=True)
            continue
        found[name] = run_part(name, args, left)
        write_atomically(path, (json.dumps(found, indent=2) + "\n").encode())
        print(f"{name}: {found[name]['state']}, {found[name]['seconds']} s", flush=True)
    return found


def run_part(name: str, args: argparse.Namespace, limit: float) -> dict[str, Any]:
    """One part, in a process that ends at its limit."""
    started = time.monotonic()
    result = args.work / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.parts", name, "--device", args.device,
               "--out", str(args.out.resolve()), "--work", str(args.work.resolve()),
               "--seconds", str(limit), *(["--tiny"] if args.tiny else []),
               *(["--data", str(args.data.resolve())] if args.data else [])]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        state = "done" if done.returncode == 0 and result.exists() else "failed"
        output = done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        state = "out of time"
        output = "".join(part.decode() if isinstance(part, bytes) else part or ""
                         for part in (error.stdout, error.stderr))
    return {
        "state": state, "seconds": round(time.monotonic() - started, 1), "device": args.device,
        "machine": machine_and_torch(args.device), "commit": commit(), "tiny": args.tiny,
        "output": output[-4000:],
        "result": json.loads(result.read_text()) if result.exists() else None,
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=9, help="for all parts")
    parser.add_argument("--only", nargs="+", choices=list(LIMITS), help="some of the parts")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", type=Path, help="packed CIFAR-10; see benchmarks.gpu.cifar10")
    parser.add_argument("--work", type=Path, default=Path("build/gpu_work"),
                        help="folder for checkpoints")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
