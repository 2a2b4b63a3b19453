"""
Fresh images every epoch
========================

`AugmentedDataset` holds your real samples and K synthetic ones of each, made while you train.
``set_epoch`` gives new ones, and the same epoch always gives the same ones.
"""

# %%
# Four real images stand for your dataset. The dataset's own ``transform`` stays: synthetic images
# are made from the image before it, and it runs on them afterwards.

import torch
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from dreamda_aug import AugmentedDataset, Synthesizer
from dreamda_aug.bundled import FashionMNISTSample
from dreamda_aug.report.pictures import labeled_grid

to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
data = FashionMNISTSample("test", transform=to_tensor)
real = Subset(data, [31, 61, 151, 271])

# %%
# By default, the dials are calibrated on the dataset once. Here they are given, with few steps, for
# speed.

synthesizer = Synthesizer(
    "bundled", steps=12, strength=0.8, replay=0.5, noise_scale=1.0
)
augmented = AugmentedDataset(real, synthesizer, expansion_ratio=2)
print(f"{len(real)} real samples + {len(augmented.synthetic)} synthetic = {len(augmented)}")

# %%
# In a training loop the whole dataset goes into one shuffled ``DataLoader``. This picture shows the
# synthetic part alone, whose samples are in order.

epochs = []
for epoch in range(3):
    augmented.set_epoch(epoch)
    for images, _labels in DataLoader(augmented.synthetic, batch_size=8):
        epochs.append(images)  # a training step

rows = [
    [real[i][0], *(image for images in epochs for image in images[2 * i : 2 * i + 2])]
    for i in range(len(real))
]
columns = ["seed", *(f"epoch {epoch}" for epoch in range(3) for _ in range(2))]
labeled_grid(rows, [data.classes[label] for _, label in real], columns, min_side=84)

# %%
# Every sample has an origin. Split by it when you validate, so that no validation image leaks into
# training.

print(augmented.origin(0))
print(augmented.origin(len(augmented) - 1))

# %%
# A replica is the same picture alone and in a batch, in any worker and in any process.

augmented.set_epoch(1)
alone, _ = augmented.synthetic[5]
print(f"largest difference: {(alone - epochs[1][5]).abs().max():.0e}")
