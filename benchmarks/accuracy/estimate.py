"""What a call of the accuracy study has still to do."""

from benchmarks.accuracy.runs import Setup, images_of, result_path
from benchmarks.accuracy.study import Selection, choices_of, planned


def estimate(setup: Setup, selection: Selection) -> str:
    """How many runs and images of the main table are missing, once its choices are made."""
    choices = choices_of(setup, selection)
    runs = planned(choices, setup, selection)
    missing = [run for run in runs if not result_path(setup, run).exists()]
    pools = {(run.spec, run.shots, run.rng_seed): run for run in missing if run.spec.is_made}
    images = sum(len(images_of(setup, run).shots) * run.spec.replicas for run in pools.values())
    steps = setup.task.steps * len(missing)
    return (f"{len(missing)} of {len(runs)} runs are missing, {steps} optimizer steps; they need "
            f"{len(pools)} pools with {images} synthetic images, some of which may be made already")
