"""Peak memory of a long run over a dataset: it grows with the batch, not with the dataset."""

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common.memory import resident_peak
from dreamda_aug import AugmentedDataset, Synthesizer


def measure_memory(
    images: int, ratio: int, steps: int, batch_sizes: Sequence[int]
) -> dict[str, Any]:
    """Go through an `AugmentedDataset` on the bundled model, with a cache on disk.

    Args:
        images: seed images, random ones.
        ratio: synthetic images of each.
        steps: of the reverse process; memory hardly depends on them.
        batch_sizes: rising, since the peak never falls.

    Returns:
        The arguments, and for each batch size the peak memory on the way.
    """
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(images, 1, 28, 28), torch.zeros(images).long())
    results = []
    for batch_size in batch_sizes:
        with tempfile.TemporaryDirectory() as cache:
            synthesizer = Synthesizer(preset="paper", steps=steps, update_rule="symmetric",
                                      cache=cache, batch_size=batch_size)
            loader = DataLoader(AugmentedDataset(data, synthesizer, ratio).synthetic, batch_size)
            started, peaks = time.perf_counter(), []
            for number, _ in enumerate(loader):
                if number % max(1, len(loader) // 5) == 0:
                    peaks.append(resident_peak() // 2**20)
            peaks.append(resident_peak() // 2**20)
            results.append({"batch_size": batch_size, "peak_mb_on_the_way": peaks,
                            "inversions": synthesizer.sampler.inversions,
                            "seconds": round(time.perf_counter() - started)})
            print(results[-1], flush=True)
    return {"images": images, "ratio": ratio, "results": results}
