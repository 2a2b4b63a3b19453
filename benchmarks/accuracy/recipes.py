"""How synthetic images are made in the accuracy study, and the settings to choose from."""

from collections.abc import Callable

from benchmarks.accuracy.pools import PoolSpec
from benchmarks.accuracy.tasks import Task
from dreamda_aug import Settings

Dials = tuple[float, float, float, tuple[float, float]]

# (strength, replay, noise scale, replay interval) of the tuned DreamDA.
TUNED: tuple[Dials, ...] = (
    (0.8, 0.5, 1.0, (0.0, 1.0)),
    (0.9, 0.8, 1.0, (0.0, 1.0)),
    (0.9, 0.5, 1.0, (0.0, 1.0)),
    (0.9, 1.0, 1.0, (0.0, 0.4)),
    (1.0, 1.0, 1.0, (0.0, 0.4)),
    (1.0, 1.0, 1.0, (0.5, 1.0)),
    (1.0, 0.5, 1.0, (0.0, 1.0)),
    # noise on the bottleneck of img2img, alone or with a little of the inversion
    (0.8, 0.0, 1.0, (0.0, 1.0)),
    (0.8, 0.0, 3.0, (0.0, 1.0)),
    (0.8, 0.3, 2.0, (0.0, 1.0)),
    (0.9, 0.3, 1.0, (0.0, 1.0)),
)


def base(task: Task, **changes: object) -> Settings:
    """Settings with a task's number of steps, and the cheapest solver."""
    return Settings(**{"steps": task.reverse_steps, "solver": "dpmsolver++", "noise_scale": 0.0,
                       **changes})  # type: ignore[arg-type]


def noise(task: Task) -> list[PoolSpec]:
    """Samples from pure noise, conditioned on the class; deterministic, better at few steps."""
    return [PoolSpec("noise", 0, base(task, strength=1.0, replay=0.0, eta=0.0,
                                      guidance_scale=g)) for g in task.guidances]  # fmt: skip


def img2img(task: Task) -> list[PoolSpec]:
    """Real Guidance (He et al. 2023, arXiv:2210.07574): SDEdit from the labeled images."""
    return [PoolSpec("replicas", 0, base(task, strength=s, replay=0.0, guidance_scale=g))
            for s in (0.7, 0.8, 0.9) for g in task.guidances[:2]]  # fmt: skip


def paper(task: Task) -> list[PoolSpec]:
    """DreamDA as published: exact replay of the inversion, noise on the bottleneck."""
    return [PoolSpec("replicas", 0, base(task, strength=0.8, replay=1.0, noise_scale=n,
                                         guidance_scale=2.0)) for n in (1.0, 3.0)]  # fmt: skip


def tuned(task: Task) -> list[PoolSpec]:
    """DreamDA with less replay, or with replay to a part of the run."""
    return [PoolSpec("replicas", 0, base(
        task, strength=s, replay=a, noise_scale=n, replay_interval=part, guidance_scale=2.0,
        update_rule="symmetric",
    )) for s, a, n, part in TUNED]  # fmt: skip


def adapted(task: Task) -> list[PoolSpec]:
    """DA-Fusion's recipe (Trabucco et al. 2023, arXiv:2302.07944): SDEdit by an adapted prior."""
    return [PoolSpec("adapted", 0, base(task, strength=s, replay=0.0, guidance_scale=2.0))
            for s in (0.7, 0.9, 1.0)]  # fmt: skip


def tuned_adapted(task: Task) -> list[PoolSpec]:
    """The same prior, with the seed image's inversion."""
    return [PoolSpec("adapted", 0, base(task, strength=s, replay=a, noise_scale=1.0,
                                        guidance_scale=2.0, update_rule="symmetric"))
            for s, a in ((0.9, 0.5), (1.0, 0.5))]  # fmt: skip


def interpolation(task: Task) -> list[PoolSpec]:
    """Diff-II (Wang and Chen 2024, arXiv:2408.16266): between inversions of one class."""
    return [PoolSpec("interpolation", 0, base(
        task, strength=s, replay=1.0, guidance_scale=2.0)) for s in (0.8, 1.0)]  # fmt: skip


def label_free(task: Task) -> list[PoolSpec]:
    """What a transform makes that sees no label: the null class, near the seed image."""
    return [PoolSpec("label_free", 0, base(task, strength=s, replay=a))
            for s, a in ((0.8, 1.0), (0.3, 0.0), (0.5, 0.0))]  # fmt: skip


RECIPES: dict[str, Callable[[Task], list[PoolSpec]]] = {
    "noise": noise,
    "img2img": img2img,
    "interpolation": interpolation,
    "paper": paper,
    "tuned": tuned,
    "adapted": adapted,
    "tuned_adapted": tuned_adapted,
    "label_free": label_free,
}
