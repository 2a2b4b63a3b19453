"""
Expand a folder
===============

`expand` writes a synthetic dataset beside your own, once. Training then reads image files, as
always. The same call resumes an interrupted one.
"""

# %%
# A folder with a sub-folder for each class, as torchvision's ``ImageFolder`` reads it.

import html
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dreamda_aug import AugmentedDataset, Synthesizer, expand
from dreamda_aug.bundled import FashionMNISTSample
from dreamda_aug.expansion import read_manifest
from dreamda_aug.report import write_report
from dreamda_aug.report.pictures import labeled_grid

place = TemporaryDirectory()
train, out = Path(place.name, "train"), Path(place.name, "train_synthetic")
sample = FashionMNISTSample("test")
for name in ("Bag", "Sneaker", "Trouser"):
    folder = train / name
    folder.mkdir(parents=True)
    first = sample.targets.index(sample.classes.index(name))
    for number in range(2):
        sample[first + number][0].save(folder / f"{number}.png")

# %%
# Two synthetic images of each. On the command line this is ``dreamda expand train --out
# train_synthetic --expansion-ratio 2``.

synthesizer = Synthesizer(
    "bundled", steps=12, strength=0.8, replay=0.5, noise_scale=1.0
)
summary = expand(train, out, synthesizer, expansion_ratio=2)
print(f"{summary.made} images made, complete: {summary.whole}")
for path in sorted(out.iterdir()):
    print(path.name + "/" * path.is_dir())

# %%
# The manifest
# ------------
#
# One line for each image: its seed image, and the recipe to make it again. Some of its fields:

lines = list(read_manifest(out))
fields = ("file", "class_name", "seed_path", "replica", "distance")
print(json.dumps({name: getattr(lines[0], name) for name in fields}, indent=2))

# %%
# The report
# ----------
#
# ``dreamda report train_synthetic`` writes one page that opens offline:

report = write_report(out)


class Page:
    """Shows an HTML file inside a notebook or a page of documentation."""

    def __init__(self, path):
        self.text = html.escape(path.read_text(encoding="utf-8"))

    def _repr_html_(self):
        size = 'width="100%" height="600"'
        return f'<iframe title="report" {size} srcdoc="{self.text}"></iframe>'


Page(report)

# %%
# Train on both
# -------------
#
# No diffusion model is loaded for this. Both folders are read like any ``ImageFolder``.

both = AugmentedDataset.from_folder(ImageFolder(train, transform=v2.ToImage()), out)
count = len(both.real)
rows = [
    [both[i][0] / 255 for i in (seed, count + 2 * seed, count + 2 * seed + 1)]
    for seed in range(0, count, 2)
]
names = [both.classes[both.targets[seed]] for seed in range(0, count, 2)]
labeled_grid(rows, names, ["seed", "replicas", "replicas"], min_side=84)

# %%

place.cleanup()
