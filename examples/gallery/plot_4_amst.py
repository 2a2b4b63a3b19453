"""
Let AMST label synthetic images
===============================

An image that went far may no longer show the class of its seed image. `AMSTWrapper` adds four
auxiliary heads to your classifier. They label synthetic images together, and the classifier learns
from the labels on which they agree.
"""

# %%
# Five labeled images of each of four classes, and two synthetic images of each, taken far on
# purpose.

import matplotlib.pyplot as plt
import torch
from torch import nn
from torchvision.transforms import v2

from dreamda_aug import Synthesizer
from dreamda_aug.amst import AMSTWrapper, VotingRule
from dreamda_aug.bundled import FashionMNISTSample

torch.manual_seed(0)
to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
data = FashionMNISTSample("train", transform=to_tensor)
chosen = [0, 2, 3, 8]  # T-shirts, pullovers, dresses, bags
names = [data.classes[label] for label in chosen]
few = [i for label in chosen for i in range(20 * label, 20 * label + 5)]
images = torch.stack([data[i][0] for i in few])
labels = [data.targets[i] for i in few]
targets = torch.tensor([chosen.index(label) for label in labels])

synthesizer = Synthesizer(
    "bundled", steps=10, strength=0.9, replay=0.2, noise_scale=2.0
)
synthetic = torch.stack(synthesizer.synthesize(
    [image for image in images for _ in range(2)],
    [label for label in labels for _ in range(2)],
    replicas=[0, 1] * len(images),
))
seed_labels = targets.repeat_interleave(2)

# %%
# Your classifier, wrapped. A label is accepted where all heads agree, with a mean confidence of 0.7
# or more.


def block(inputs, outputs):
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]


classifier = nn.Sequential(
    *block(1, 16), nn.MaxPool2d(2), *block(16, 32), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    nn.Linear(128, len(chosen)),
)
wrapper = AMSTWrapper(classifier, voting=VotingRule(confidence_threshold=0.7))


def train(loss_of_a_step, steps):
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(lr=5e-3))
    # labels are made at the end, so the learning rate has to come down first
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = loss_of_a_step()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"loss after {steps} steps: {loss:.2f}")


# %%
# Stage 1: the auxiliary heads learn from the real images.

train(lambda: wrapper.pretraining_loss(images, targets), steps=120)

# %%
# Stage 2: they label the synthetic images. Where they do not agree, an image is left out.

found = wrapper.label(synthetic)
other = (found.labels != seed_labels) & found.mask
print(f"{int(found.mask.sum())} of {len(synthetic)} accepted, "
      f"{int(other.sum())} of these with another label than the seed image's")

# %%
# Some of them with the label of the heads: green is accepted, grey is left out.

figure, axes = plt.subplots(4, 8, figsize=(8, 4.9), layout="constrained")
for row, line in enumerate(axes):
    for column, axis in enumerate(line):
        number = 10 * row + column
        accepted = bool(found.mask[number])
        axis.imshow(synthetic[number, 0], cmap="gray", vmin=0, vmax=1)
        axis.set_title(names[int(found.labels[number])], fontsize=9,
                       color="tab:green" if accepted else "tab:gray")
        axis.set(xticks=[], yticks=[])
    line[0].set_ylabel(f"seed: {names[row]}", fontsize=9)

# %%
# Stage 3: the classifier learns from real images and accepted labels. Then the plain module comes
# back, with its own ``state_dict`` keys.


def training_loss():
    return wrapper.losses(images, targets, synthetic, pseudo_labels=found).total


train(training_loss, steps=40)
classifier = wrapper.to_classifier()

# %%
# So few images and steps show how to call it, not what it is worth; see :doc:`the evidence
# </evidence>`. `SelfTraining` runs the same stages over whole datasets, in rounds.
