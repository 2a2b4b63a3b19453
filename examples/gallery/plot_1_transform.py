"""
A transform in a DataLoader
===========================

`DreamDAugment` is a torchvision v2 transform. It replaces an image by a synthetic one of the same
class, with a probability that you choose, and leaves the label alone.
"""

# %%
# Ten real images stand for your dataset: one for each class of Fashion-MNIST.

import torch
from torch.utils.data import DataLoader, Subset, default_collate
from torchvision.transforms import v2

from dreamda_aug import DreamDAugment
from dreamda_aug.bundled import FashionMNISTSample
from dreamda_aug.report.pictures import labeled_grid

torch.manual_seed(0)
data = FashionMNISTSample("test")
one_per_class = [data.targets.index(label) for label in range(len(data.classes))]

# %%
# One image
# ---------
#
# The model is loaded with the first image. ``strength``, ``replay`` and ``noise_scale`` decide how
# far an image goes (:doc:`plot_2_dials`); by default they are calibrated. ``steps`` is small here,
# for speed. ``p=1`` replaces every image; in training keep the default, 0.5.

augment = DreamDAugment(
    "bundled", p=1, steps=12, strength=0.8, replay=0.5, noise_scale=1.0
)

image, label = data[one_per_class[8]]
new_image, new_label = augment(image, label)
print(f"{image.mode} {image.size}, {data.classes[label]}, became "
      f"{new_image.mode} {new_image.size}, {data.classes[new_label]}")

# %%
# A whole batch
# -------------
#
# One image at a time is slow. Called on a batch, the transform makes all its images together. So in
# a ``DataLoader`` it belongs in ``collate_fn``, like torchvision's ``MixUp``. There it also finds
# the labels, for models that are conditioned on the class.

data.transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
seed_images, _ = default_collate([data[i] for i in one_per_class])


def collate(samples):
    images, labels = default_collate(samples)
    return augment(images, labels)


loader = DataLoader(Subset(data, one_per_class), batch_size=10, collate_fn=collate)
replicas = [images for _ in range(2) for images, labels in loader]

# %%
# Seed images and their replicas in two passes over the loader. Every pass gives new images, which
# ``torch.manual_seed`` determines.

names = ["seed", "first pass", "second pass"]
labeled_grid([seed_images, *replicas], names, data.classes, min_side=84)

# %%
# For real and synthetic images together, the same in every run, use a dataset:
# :doc:`plot_3_dataset`.
