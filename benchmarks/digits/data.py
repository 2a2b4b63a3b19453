"""The digits: real ones, a diffusion model of them, and synthetic ones."""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor

from dreamda_aug import Synthesizer
from dreamda_aug.generation.sampler import Request

CLASSES, PER_CLASS, REPLICAS = 10, 3, 10
GENERATION = {"steps": 50, "strength": 0.44, "timestep_spacing": "scheduler", "replay": 0.0,
              "noise_scale": 1.0, "update_rule": "symmetric"}  # fmt: skip


class RunData:
    """The labeled, synthetic and held-out images of one run.

    Args:
        rng_seed: draws the labeled images.
        folder: where the model lies and synthetic images are kept.
        validation: hold out the unused training digits in place of the test set.
    """

    def __init__(self, rng_seed: int, folder: Path, validation: bool) -> None:
        images, labels, train, test = digits()
        generator = torch.Generator().manual_seed(rng_seed)
        order = train[torch.randperm(len(train), generator=generator)]
        few = torch.cat([order[labels[order] == c][:PER_CLASS] for c in range(CLASSES)])
        held_out = order[~torch.isin(order, few)] if validation else test
        self.rng_seed = rng_seed
        self.real, self.targets = images[few], labels[few]
        self.seed_labels = self.targets.repeat_interleave(REPLICAS)
        self.synthetic = make_synthetic(self.real, rng_seed, folder)
        judge = SVC(C=10).fit(images[train].flatten(1).numpy(), labels[train].numpy())
        self.truth = torch.tensor(judge.predict(self.synthetic.flatten(1).numpy()))
        self.held_out, self.held_out_labels = images[held_out], labels[held_out]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (1797, 1, 8, 8) in [0, 1], labels, and indices of 1,000 training and 797 test."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images, torch.tensor(data.target), order[:1000], order[1000:]


def train_model(folder: Path, steps: int = 1500) -> None:
    """An unconditional pixel diffusion model of the training digits, saved into ``folder``."""
    torch.manual_seed(0)
    images, _, train, _ = digits()
    images = images[train] * 2 - 1
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        block_out_channels=(24, 48), norm_num_groups=8, attention_head_dim=16,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    average = copy.deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    for step in range(steps):
        batch = images[torch.randint(len(images), (64,))]
        noise, t = torch.randn_like(batch), torch.randint(1000, (64,))
        loss = F.mse_loss(unet(scheduler.add_noise(batch, noise, t), t).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, now in zip(average.parameters(), unet.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
    DDPMPipeline(average, scheduler).save_pretrained(folder / "model")


def make_synthetic(real: Tensor, rng_seed: int, folder: Path) -> Tensor:
    """``REPLICAS`` synthetic images of each, (len(real) * REPLICAS, 1, 8, 8), kept on disk."""
    settings = "-".join(f"{name}{value}" for name, value in sorted(GENERATION.items()))
    path = folder / f"synthetic-{rng_seed}-{settings}.safetensors"
    if not path.exists():
        sampler = Synthesizer(
            str(folder / "model"), "paper", batch_size=len(real) * REPLICAS, rng_seed=rng_seed,
            cache=None, **GENERATION,
        ).sampler  # fmt: skip
        wanted = [Request(i, replica=k) for i in range(len(real)) for k in range(REPLICAS)]
        save_file({"images": sampler.synthesize(real, wanted).images.cpu()}, path)
    return load_file(path)["images"]
