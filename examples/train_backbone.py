"""Train a small pixel diffusion model on your own images, as a diffusers pipeline folder.

    python examples/train_backbone.py --data path/to/images --image-size 64 --out my_model
    python examples/train_backbone.py --dataset FashionMNIST --root data --first 30000 \\
        --image-size 28 --grey --out my_model

``--data`` takes a folder of class folders; ``--dataset`` the name of a torchvision dataset. Images
are read once and kept in memory, resized, as bytes: 100,000 of 64 pixels take 1.2 GB. The
model knows the classes, and a null class beside them, so that samples can be guided. The result
opens with ``dreamda_aug.load_model("my_model")``. Run the same command again to go on after
an interruption: the checkpoint lies in ``OUT/checkpoint.pt``. ``OUT/samples.png`` shows a row of
guided samples for each class; ``OUT/training.json`` keeps the loss on images held out.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2
from torchvision.utils import save_image
from tqdm import tqdm


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of class folders with images")
    source.add_argument("--dataset", help="name of a torchvision dataset, e.g. CIFAR10")
    parser.add_argument("--root", type=Path, default=Path("data"), help="where --dataset lies")
    parser.add_argument("--first", type=int, help="use the first N images only, in file order")
    parser.add_argument("--held-out", type=int, default=1000,
                        help="the last N of them are never trained on; their loss is reported")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pipeline")
    parser.add_argument("--image-size", type=int, default=32, help="pixels")
    parser.add_argument("--grey", action="store_true", help="one channel instead of three")
    parser.add_argument("--random-flip", action="store_true",
                        help="mirror half of the images; not for things that face one way, such as "
                             "digits or Fashion-MNIST's shoes, or half of the samples face the "
                             "other way")
    parser.add_argument("--unconditional", action="store_true", help="do not learn the classes")
    parser.add_argument("--label-dropout", type=float, default=0.1,
                        help="share of labels replaced by the null class (for guidance)")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128],
                        help="channels per resolution level")
    parser.add_argument("--layers-per-block", type=int, default=1)
    parser.add_argument("--start-from", type=Path,
                        help="pipeline folder whose weights to begin with; its shape replaces "
                             "--widths and --layers-per-block")
    parser.add_argument("--prediction-type", default="v_prediction",
                        choices=["epsilon", "v_prediction", "sample"])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=math.inf,
                        help="stop after this many minutes of training, if --steps is not reached")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--cooldown", type=float, default=0.3,
                        help="share of the run, at its end, in which the learning rate falls to 0")
    parser.add_argument("--ema-decay", type=float, default=0.999)
    parser.add_argument("--save-every", type=float, default=5.0, help="minutes")
    parser.add_argument("--sheet-every", type=int, default=2000, help="steps")
    parser.add_argument("--workers", type=int, default=0, help="processes that read the images")
    parser.add_argument("--threads", type=int, default=0, help="torch threads, 0: as torch likes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast (GPUs)")
    parser.add_argument("--rng-seed", type=int, default=0)
    return parser.parse_args()


def read_images(args: argparse.Namespace) -> tuple[TensorDataset, list[str]]:
    """Images (N, C, H, W) uint8 and labels (N,) on the device, and the names of the classes."""
    steps = [
        v2.ToImage(),
        v2.Grayscale(1) if args.grey else v2.RGB(),
        v2.Resize(args.image_size, antialias=True),
        v2.CenterCrop(args.image_size),
        v2.ToDtype(torch.uint8, scale=True),
    ]
    transform = v2.Compose(steps)
    if args.data:
        data = datasets.ImageFolder(args.data, transform)
    else:
        data = getattr(datasets, args.dataset)(args.root, train=True, transform=transform)
    count = len(data) if args.first is None else min(args.first, len(data))
    loader = DataLoader(Subset(data, range(count)), 256, num_workers=args.workers)
    pixels, labels = zip(*tqdm(loader, desc="reading images", disable=None))
    images = TensorDataset(*(torch.cat(part).to(args.device) for part in (pixels, labels)))
    return images, list(getattr(data, "classes", []))


def split(images: TensorDataset, held_out: int) -> tuple[TensorDataset, TensorDataset]:
    """The images to train on and, behind them, those that are held out."""
    if not 0 < held_out < len(images):
        raise SystemExit(f"--held-out must lie between 1 and {len(images) - 1}, got {held_out}")
    return TensorDataset(*images[:-held_out]), TensorDataset(*images[-held_out:])


def to_model(pixels: Tensor) -> Tensor:
    """Bytes as the model sees them, in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def mirror_half(pixels: Tensor) -> Tensor:
    """Each image is mirrored with probability one half."""
    chosen = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
    return torch.where(chosen, pixels.flip(-1), pixels)


def build_unet(args: argparse.Namespace, num_classes: int) -> UNet2DModel:
    if args.start_from:
        unet = UNet2DModel.from_pretrained(args.start_from / "unet").float()
        args.widths = list(unet.config.block_out_channels)
        args.layers_per_block = unet.config.layers_per_block
        return unet
    levels = len(args.widths)
    if any(width % 8 for width in args.widths):
        raise SystemExit(f"--widths must be multiples of 8, got {args.widths}")
    return UNet2DModel(
        sample_size=args.image_size,
        in_channels=1 if args.grey else 3,
        out_channels=1 if args.grey else 3,
        layers_per_block=args.layers_per_block,
        block_out_channels=tuple(args.widths),
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        attention_head_dim=min(32, args.widths[-1]),
        norm_num_groups=8,
        # one class more than there are: the last one is the null class
        num_class_embeds=None if args.unconditional else num_classes + 1,
    )


def denoising_loss(unet, scheduler, x_0: Tensor, eps: Tensor, t: Tensor,
                   labels: Tensor | None) -> Tensor:
    output = unet(scheduler.add_noise(x_0, eps, t), t, class_labels=labels).sample
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        target = eps
    else:
        target = x_0 if kind == "sample" else scheduler.get_velocity(x_0, eps, t)
    return F.mse_loss(output.float(), target)


def spread_timesteps(count: int, levels: int, generator: torch.Generator | None = None) -> Tensor:
    """Random timesteps that cover all noise levels evenly, which makes the loss less noisy."""
    places = (torch.arange(count) + torch.rand(1, generator=generator)) / count
    return (places * levels).long()[torch.randperm(count, generator=generator)]


@torch.no_grad()
def held_out_loss(unet, scheduler, data: TensorDataset, args, null_class: int | None) -> float:
    """The loss on the held-out images, with the same noise whenever it is asked."""
    generator, losses = torch.Generator().manual_seed(0), []
    for rows in torch.arange(len(data)).split(args.batch_size):
        pixels, labels = data[rows]
        x_0 = to_model(pixels)
        eps = torch.randn(x_0.shape, generator=generator)
        t = spread_timesteps(len(rows), scheduler.config.num_train_timesteps, generator)
        loss = denoising_loss(unet, scheduler, x_0, eps.to(x_0), t.to(x_0.device),
                              None if null_class is None else labels)
        losses.append(loss.item() * len(rows))
    return sum(losses) / len(data)


@torch.no_grad()
def draw_sheet(unet, scheduler, path: Path, null_class: int | None, rng_seed: int,
               columns: int = 8, steps: int = 25, guidance_scale: float = 2.0) -> None:
    """A row of guided samples for each class, by DDIM."""
    ddim = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    ddim.set_timesteps(steps)
    labels = torch.arange(min(null_class or 8, 10)).repeat_interleave(columns).to(unet.device)
    size, channels = unet.config.sample_size, unet.config.in_channels
    generator = torch.Generator().manual_seed(rng_seed)
    x = torch.randn(len(labels), channels, size, size, generator=generator).to(unet.device)
    for t in ddim.timesteps:
        if null_class is None:
            output = unet(x, t).sample
        else:
            both = torch.cat([torch.full_like(labels, null_class), labels])
            null, known = unet(torch.cat([x, x]), t, class_labels=both).sample.chunk(2)
            output = null + guidance_scale * (known - null)
        x = ddim.step(output, t, x).prev_sample
    save_image((x / 2 + 0.5).clamp(0, 1), path, nrow=columns, padding=1)


def endless(count: int, batch_size: int) -> Iterator[Tensor]:
    """Rows of batches, in a new order each time around; the last, smaller batch is left out."""
    while True:
        yield from torch.randperm(count).split(batch_size)[: max(1, count // batch_size)]


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.rng_seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    images, class_names = read_images(args)
    if args.unconditional:
        class_names = []
    elif not class_names:
        raise SystemExit("these images have no classes; train with --unconditional")
    train, held_out = split(images, args.held_out)
    null_class = len(class_names) or None
    unet = build_unet(args, len(class_names)).to(args.device, memory_format=torch.channels_last)
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type=args.prediction_type,
        clip_sample=False,
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=0.01)
    ema = EMAModel(unet.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75,
                   foreach=True)
    ema.to(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"
    step, elapsed, history = 0, 0.0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=args.device, weights_only=True)
        unet.load_state_dict(state["unet"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        step, elapsed, history = state["step"], state["elapsed"], state["history"]
        torch.manual_seed(args.rng_seed + step)

    def save(sheet: bool) -> float:
        ema.store(unet.parameters())
        ema.copy_to(unet.parameters())
        unet.eval()
        loss = held_out_loss(unet, scheduler, held_out, args, null_class)
        history.append([step, round(loss, 5)])
        if sheet:
            draw_sheet(unet, scheduler, args.out / "samples.png", null_class, args.rng_seed)
        DDPMPipeline(unet, scheduler).save_pretrained(args.out)
        unet.train()
        ema.restore(unet.parameters())
        state = {"unet": unet.state_dict(), "optimizer": optimizer.state_dict(),
                 "ema": ema.state_dict(), "step": step, "elapsed": elapsed, "history": history}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
        facts = {
            "data": args.dataset or args.data.name, "images": len(train),
            "held_out_images": len(held_out), "steps": step, "minutes": round(elapsed / 60, 1),
            "parameters": sum(p.numel() for p in unet.parameters()),
            "class_names": class_names or None,
            "settings": {k: v.name if isinstance(v, Path) else str(v)
                         for k, v in vars(args).items() if k not in ("out", "root")},
            "held_out_loss": history,
        }
        (args.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
        return loss

    bar = tqdm(total=args.steps, initial=step, unit="step", mininterval=10)
    started = last_save = time.monotonic()
    before, first_step, loss_mean, on_held_out = elapsed, step, None, None
    for rows in endless(len(train), args.batch_size):
        progress = max(step / args.steps, elapsed / 60 / args.minutes)
        if progress >= 1:
            break
        rate = args.learning_rate * min(1, (step - first_step + 1) / 200)
        optimizer.param_groups[0]["lr"] = rate * min(1, (1 - progress) / max(args.cooldown, 1e-9))
        pixels, labels = train[rows.to(args.device)]
        x_0 = to_model(mirror_half(pixels) if args.random_flip else pixels)
        eps = torch.randn_like(x_0)
        t = spread_timesteps(len(x_0), scheduler.config.num_train_timesteps).to(args.device)
        if null_class is None:
            labels = None
        else:
            dropped = torch.rand(len(x_0), device=args.device) < args.label_dropout
            labels = torch.where(dropped, null_class, labels)
        with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.bf16):
            loss = denoising_loss(unet, scheduler, x_0, eps, t, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.step(unet.parameters())
        step += 1
        now = time.monotonic()
        elapsed = before + now - started
        loss = loss.detach()  # stays on the device: a GPU need not wait for each step to be told
        loss_mean = loss if loss_mean is None else 0.99 * loss_mean + 0.01 * loss
        bar.update()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss_mean.item():.4f}", held_out=on_held_out, refresh=False)
        sheet = step % args.sheet_every == 0
        if sheet or now - last_save > 60 * args.save_every:
            last_save = now
            on_held_out = f"{save(sheet):.4f}"
    on_held_out = save(sheet=True)
    bar.close()
    print(f"done: {step} steps, held-out loss {on_held_out:.4f}, saved to {args.out}")


if __name__ == "__main__":
    main()
