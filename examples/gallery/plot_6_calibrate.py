"""
Measure how far images may go
=============================

The further an image goes, the more a classifier can learn from it, and the likelier it is to lose
its class. `calibrate` tries settings on your own images, and takes the one that moves them furthest
while enough of them keep their class.
"""

# %%
# Ten labeled images. In practice use fifty or more, as ``dreamda calibrate FOLDER`` does.

import matplotlib.pyplot as plt
import torch

from dreamda_aug import Settings, Synthesizer, calibrate
from dreamda_aug.bundled import FashionMNISTSample, fashion_mnist_judge

data = FashionMNISTSample("test")
rows = [data.targets.index(label) + 2 for label in range(len(data.classes))]
images = data.data[rows][:, None] / 255
labels = [data.targets[row] for row in rows]

# %%
# Dials that are None are measured; the others stay fixed. Few steps are taken here, for speed.

settings = Settings(
    steps=8, strength=0.6, replay=None, noise_scale=None, guidance_scale=2.0
)
synthesizer = Synthesizer("bundled", settings)

# %%
# A classifier judges which replicas keep their class. Without one, linear probes on the diffusion
# model's own features do. ``conditions`` are what the model is conditioned on: here the classes.

conditioner, model = synthesizer.conditioner, synthesizer.model
found = calibrate(
    images,
    torch.tensor(labels),
    synthesizer=synthesizer,
    conditions=[conditioner.condition(label, model) for label in labels],
    classifier=fashion_mnist_judge(),
    min_agreement=0.9,
    replays=(0.9, 0.4),
    noise_scales=(0.0, 1.0, 4.0),
    expansion_ratio=2,
)
print(found.summary())

# %%
# All measurements. Points to the right are further from the seed image; below the dashed line too
# many replicas lose their class.

figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
for replay in dict.fromkeys(point.replay for point in found.points):
    line = [point for point in found.points if point.replay == replay]
    distances = [point.distance for point in line]
    agreements = [point.agreement for point in line]
    axis.plot(distances, agreements, "o-", label=f"replay {replay:g}")
    for point in line:
        axis.annotate(f"{point.noise_scale:g}", (point.distance, point.agreement),
                      xytext=(5, 4), textcoords="offset points", fontsize=8)
axis.axhline(0.9, color="gray", linestyle="--", linewidth=1)
axis.plot(found.chosen.distance, found.chosen.agreement, "o", markersize=14,
          fillstyle="none", color="black", label="chosen")
axis.set(xlabel="distance from the seed image (RMS of pixels)",
         ylabel="share of replicas that keep their class",
         title="Numbers are noise scales")
axis.legend()
plt.show()

# %%
# The result is stored beside the cache. Every `Synthesizer` with this model and these settings now
# uses it.

calibrated = Synthesizer("bundled", settings).settings
print(f"replay {calibrated.replay:g}, noise scale {calibrated.noise_scale:g}")
