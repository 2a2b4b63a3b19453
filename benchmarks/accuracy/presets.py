"""What settings cost and give: the table that the presets are chosen from.

1,000 seed images that the model has never seen, one replica of each in each of three draws.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.accuracy.arms import Arm
from benchmarks.accuracy.images import fidelity, measure
from benchmarks.accuracy.pools import PoolSpec, open_model
from benchmarks.accuracy.runs import Run, Setup, images_of, make_pool, perform, pool_of
from benchmarks.common.provenance import commit, machine_and_torch
from dreamda_aug import Settings, Synthesizer
from dreamda_aug.statistics import interval

SEEDS, DRAWS, PER_SEED = 1000, 3, 10  # PER_SEED: replicas that share the price of an inversion
# Figures, and whether more of it is better; a setting is on the front if none is as good in all.
FIGURES = {"rows": False, "frechet": False, "agreement": True, "diversity": True, "distance": True}

_FEW = Settings(steps=10, solver="dpmsolver++", guidance_scale=2.0, update_rule="symmetric",
                replay=0.0, noise_scale=0.0)  # fmt: skip
# All with replay 0 unless it is named.
CANDIDATES = {
    "recommended in 0.1": Settings(steps=50, strength=0.5, replay=0.9, noise_scale=1.0,
                                   guidance_scale=2.0, timestep_spacing="scheduler"),
    "fast in 0.1": Settings(steps=25, update_rule="symmetric", noise_scale=4.0,
                            guidance_interval=(0.2, 0.8), timestep_spacing="scheduler"),
    "2M, 10 steps, strength 0.5": replace(_FEW, strength=0.5),
    "2M, 10 steps, strength 0.7": replace(_FEW, strength=0.7),
    "2M, 10 steps, strength 0.8": _FEW,
    "2M, 10 steps, strength 0.9": replace(_FEW, strength=0.9),
    "2M, 10 steps, strength 1": replace(_FEW, strength=1.0),
    "2M, 10 steps, strength 0.7, noise 1": replace(_FEW, strength=0.7, noise_scale=1.0),
    "2M, 10 steps, strength 0.85, noise 1": replace(_FEW, strength=0.85, noise_scale=1.0),
    "2M, 10 steps, strength 0.8, noise 2": replace(_FEW, noise_scale=2.0),
    "2M, 10 steps, strength 0.9, replay 0.5, noise 1": replace(
        _FEW, strength=0.9, replay=0.5, noise_scale=1.0),
    "2M, 10 steps, strength 0.8, replay 1, noise 2": replace(
        _FEW, replay=1.0, noise_scale=2.0),
    "2M, 6 steps, strength 0.85, noise 1": replace(
        _FEW, steps=6, strength=0.85, noise_scale=1.0),
    "2M, 6 steps, strength 0.85, noise 1, guided in the middle": replace(
        _FEW, steps=6, strength=0.85, noise_scale=1.0, guidance_interval=(0.2, 0.8)),
    "2M, 4 steps, strength 0.85, noise 1": replace(
        _FEW, steps=4, strength=0.85, noise_scale=1.0),
    "2M, 20 steps, strength 0.85, noise 1": replace(
        _FEW, steps=20, strength=0.85, noise_scale=1.0),
    "DDIM, 10 steps, strength 0.85, noise 1": replace(
        _FEW, solver="ddim", strength=0.85, noise_scale=1.0),
    "Heun, 5 steps, strength 0.85, noise 1": replace(
        _FEW, steps=5, solver="heun", strength=0.85, noise_scale=1.0),
    "2M, 10 steps, strength 0.85, noise 1, guidance 1": replace(
        _FEW, strength=0.85, noise_scale=1.0, guidance_scale=1.0),
    "2M, 10 steps, strength 0.85, noise 1, guidance 3": replace(
        _FEW, strength=0.85, noise_scale=1.0, guidance_scale=3.0),
}  # fmt: skip


def presets(setup: Setup, out: Path, names: Sequence[str] | None, processes: int) -> None:
    """Measure the candidates, and write table, plot and JSON.

    What the JSON already holds of the same model is not measured again.
    """
    shots = SEEDS // setup.task.classes
    model = open_model(setup.task, setup.model, setup.device)
    facts = {"task": setup.task.name, "model": model.fingerprint, "seed_images": SEEDS,
             "draws": DRAWS}
    known = _known(out / "presets.json", facts)
    runs = [Run(Arm(name, "replicas"), PoolSpec("replicas", DRAWS, settings), shots, 0)
            for name, settings in CANDIDATES.items()
            if name not in known and (names is None or name in names)]
    perform(make_pool, setup, runs, processes)
    for run in runs:
        assert run.spec.settings is not None
        images, pool = images_of(setup, run), pool_of(setup, run)
        figures = measure(setup, run)
        figures["frechet"], figures["half"] = interval(
            [fidelity(setup, images, pool.pixels[draw::DRAWS])[0] for draw in range(DRAWS)])
        sampler = Synthesizer(model, run.spec.settings, cache=None).sampler
        rows = sampler.rows(inversions=1, samples=PER_SEED)
        known[run.arm.name] = {"name": run.arm.name, "rows": rows / PER_SEED, **figures,
                               "settings": run.spec.settings.summary()}
    found = [known[name] for name in CANDIDATES if name in known]
    for row in found:
        row["front"] = not any(_beats(other, row) for other in found)
    facts |= {"machine": machine_and_torch(setup.device), "commit": commit(), "settings": found}
    out.mkdir(parents=True, exist_ok=True)
    (out / "presets.json").write_text(json.dumps(facts, indent=1) + "\n")
    text = table(found)
    (out / "presets.md").write_text(
        f"# What settings cost and give, on {setup.task.name}\n\n{SEEDS} seed images, {DRAWS} draws"
        f"; rows: denoiser rows per sample, {PER_SEED} to an inversion; Fréchet distance on the "
        "judge's features, with a 95 % interval over draws; distance and diversity: RMS over "
        f"pixels. {facts['machine']}; commit {facts['commit']}.\n\n{text}")  # fmt: skip
    print(text)
    plot(found, out / "presets.png")


def _known(path: Path, facts: dict) -> dict[str, dict]:
    """Name -> row of the candidates of today that an earlier table of the same facts holds."""
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    if any(earlier.get(name) != value for name, value in facts.items()):
        return {}
    return {row["name"]: row for row in earlier["settings"]
            if row["name"] in CANDIDATES
            and CANDIDATES[row["name"]].summary() == row["settings"]}  # fmt: skip


def _beats(one: dict, other: dict) -> bool:
    """Whether a setting is as good as another in all figures, and better in one."""
    signs = [(1 if more else -1) * (one[name] - other[name]) for name, more in FIGURES.items()]
    return min(signs) >= 0 and max(signs) > 0


def table(found: Sequence[dict]) -> str:
    """One row per setting, in Markdown."""
    lines = ["| setting | rows | Fréchet | class kept | distance | diversity | front |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in found:
        lines.append(
            f"| {row['name']} | {row['rows']:.1f} | {row['frechet']:.1f} ± {row['half']:.1f} "
            f"| {row['agreement']:.1%} | {row['distance']:.3f} | {row['diversity']:.3f} "
            f"| {'yes' if row['front'] else ''} |")
    return "\n".join(lines) + "\n"


def plot(found: Sequence[dict], path: Path) -> None:
    """Fidelity over cost, and class kept over distance."""
    from matplotlib.figure import Figure

    figure = Figure((13, 4.5), layout="constrained")
    panels = (("rows", "frechet"), ("distance", "agreement"))
    words = {"rows": "denoiser rows per sample", "frechet": "Fréchet distance",
             "distance": "RMS distance from the seed image",
             "agreement": "share that keeps its class"}  # fmt: skip
    for axes, (x, y) in zip(figure.subplots(1, 2), panels, strict=True):
        for number, row in enumerate(found):
            axes.plot(row[x], row[y], "os^vDPX*<>dph8"[number // 10 % 14],
                      color=f"C{number % 10}", fillstyle="full" if row["front"] else "none",
                      label=row["name"] if x == "rows" else None)  # fmt: skip
        axes.set_xlabel(words[x])
        axes.set_ylabel(words[y])
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right", fontsize=7)
    figure.savefig(path, dpi=110)
