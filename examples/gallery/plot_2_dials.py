"""
What the dials do
=================

Three dials decide how far a synthetic image goes from its seed image. Here each is turned by
itself, while the others stay fixed.
"""

# %%
# Three images, and the settings to start from.

from dataclasses import replace

import torch
from torchvision.transforms import v2

from dreamda_aug import Settings, Synthesizer
from dreamda_aug.bundled import FashionMNISTSample
from dreamda_aug.report.pictures import labeled_grid

to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
data = FashionMNISTSample("test", transform=to_tensor)
seed_images, labels = zip(*[data[i] for i in (3, 120, 245)], strict=True)
names = [data.classes[label] for label in labels]

settings = Settings(
    steps=12, strength=0.7, replay=0.7, noise_scale=1.0, guidance_scale=2.0
)
synthesizer = Synthesizer("bundled", settings)


def turn(dial, values):
    """Seed images, and a synthetic image of each for every value of a dial."""
    made = []
    for value in values:
        turned = synthesizer.with_settings(replace(settings, **{dial: value}))
        made.append(turned.synthesize(seed_images, labels))
    rows = list(zip(seed_images, *made, strict=True))
    columns = ["seed", *(f"{value:g}" for value in values)]
    return labeled_grid(rows, names, columns, min_side=84)


# %%
# Strength
# --------
#
# The noise level at which generation begins, as a share of the way to pure noise. Shapes change
# last.

turn("strength", [0.3, 0.5, 0.7, 0.9])

# %%
# Replay
# ---------
#
# The share of the recorded inversion that is replayed. At 1 only the noise at the bottleneck
# changes the image. At 0 only the noise level of the start ties it to its seed image.

turn("replay", [1.0, 0.8, 0.5, 0.0])

# %%
# Noise scale
# -----------
#
# Noise at the model's bottleneck, the paper's dial, relative to the bottleneck's RMS. Too much
# breaks images.

turn("noise_scale", [0.0, 1.0, 3.0, 9.0])

# %%
# The best values depend on the model and on your images. :doc:`plot_6_calibrate` measures them, and
# the page on :doc:`dials </dials>` explains how. ``dreamda explore FOLDER`` makes a page with
# sliders and your own images.
