"""Train a small pixel diffusion model on your own images, as a diffusers pipeline folder.

    python examples/train_backbone.py --data path/to/images --image-size 64 --out my_backbone
    python examples/train_backbone.py --dataset FashionMNIST --root data --image-size 28 --grey \\
        --out my_backbone

``--data`` takes a folder of class folders; ``--dataset`` the name of a torchvision dataset. The
result opens with ``dreamda_aug.load_backbone("my_backbone")`` and with
``diffusers.DDPMPipeline.from_pretrained("my_backbone")``. Run the same command again to go on
after an interruption: the checkpoint lies in ``OUT/checkpoint.pt``.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of class folders with images")
    source.add_argument("--dataset", help="name of a torchvision dataset, e.g. CIFAR10")
    parser.add_argument("--root", type=Path, default=Path("data"), help="where --dataset lies")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pipeline")
    parser.add_argument("--image-size", type=int, default=32, help="pixels")
    parser.add_argument("--grey", action="store_true", help="one channel instead of three")
    parser.add_argument("--no-flip", action="store_true", help="train without mirrored images")
    parser.add_argument("--class-conditional", action="store_true")
    parser.add_argument("--label-dropout", type=float, default=0.1,
                        help="share of labels replaced by the null class (for guidance)")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128],
                        help="channels per resolution level")
    parser.add_argument("--layers-per-block", type=int, default=1)
    parser.add_argument("--prediction-type", default="v_prediction",
                        choices=["epsilon", "v_prediction", "sample"])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=math.inf,
                        help="stop after this many minutes of training, if --steps is not reached")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--ema-decay", type=float, default=0.999)
    parser.add_argument("--save-every", type=float, default=3.0, help="minutes")
    parser.add_argument("--threads", type=int, default=0, help="torch threads, 0: as torch likes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--rng-seed", type=int, default=0)
    return parser.parse_args()


def open_dataset(args: argparse.Namespace) -> datasets.VisionDataset:
    steps = [
        v2.ToImage(),
        v2.Grayscale(1) if args.grey else v2.RGB(),
        v2.Resize(args.image_size, antialias=True),
        v2.CenterCrop(args.image_size),
        *([] if args.no_flip else [v2.RandomHorizontalFlip()]),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5], [0.5]),
    ]
    transform = v2.Compose(steps)
    if args.data:
        return datasets.ImageFolder(args.data, transform)
    return getattr(datasets, args.dataset)(args.root, train=True, transform=transform)


def build_unet(args: argparse.Namespace, num_classes: int) -> UNet2DModel:
    levels = len(args.widths)
    return UNet2DModel(
        sample_size=args.image_size,
        in_channels=1 if args.grey else 3,
        out_channels=1 if args.grey else 3,
        layers_per_block=args.layers_per_block,
        block_out_channels=tuple(args.widths),
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        attention_head_dim=32,
        norm_num_groups=8,
        # one class more than there are: the last one is the null class
        num_class_embeds=num_classes + 1 if args.class_conditional else None,
    )


def training_target(scheduler, x_0, eps, t):
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return eps
    return x_0 if kind == "sample" else scheduler.get_velocity(x_0, eps, t)


def endless(loader):
    while True:
        yield from loader


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.rng_seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    data = open_dataset(args)
    class_names = list(getattr(data, "classes", []))
    if args.class_conditional and not class_names:
        raise SystemExit(f"--class-conditional needs a dataset with classes, {data} has none")
    unet = build_unet(args, len(class_names)).to(args.device, memory_format=torch.channels_last)
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type=args.prediction_type,
        clip_sample=False,
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=0.01)
    ema = EMAModel(unet.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75)
    ema.to(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"
    step, elapsed, loss_mean = 0, 0.0, None
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=args.device, weights_only=True)
        unet.load_state_dict(state["unet"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        step, elapsed, loss_mean = state["step"], state["elapsed"], state["loss_mean"]
        print(f"resumed at step {step}, after {elapsed / 60:.1f} min", flush=True)

    def save() -> None:
        state = {"unet": unet.state_dict(), "optimizer": optimizer.state_dict(),
                 "ema": ema.state_dict(), "step": step, "elapsed": elapsed,
                 "loss_mean": loss_mean}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
        ema.store(unet.parameters())
        ema.copy_to(unet.parameters())
        DDPMPipeline(unet, scheduler).save_pretrained(args.out)
        ema.restore(unet.parameters())
        facts = {
            "data": args.dataset or args.data.name, "images": len(data), "steps": step,
            "minutes": round(elapsed / 60, 1), "loss": loss_mean,
            "parameters": sum(p.numel() for p in unet.parameters()),
            "class_names": class_names if args.class_conditional else None,
            "settings": {k: str(v) for k, v in vars(args).items() if k not in ("out", "root")},
        }
        (args.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")

    loader = DataLoader(data, args.batch_size, shuffle=True, drop_last=True)
    started = last_save = last_print = time.monotonic()
    before = elapsed
    for images, labels in endless(loader):
        progress = max(step / args.steps, elapsed / 60 / args.minutes)
        if progress >= 1:
            break
        decay = 0.5 + 0.5 * math.cos(math.pi * progress)
        rate = args.learning_rate * min(1, (step + 1) / 200) * decay
        optimizer.param_groups[0]["lr"] = rate
        x_0 = images.to(args.device).contiguous(memory_format=torch.channels_last)
        eps = torch.randn_like(x_0)
        t = torch.randint(scheduler.config.num_train_timesteps, (len(x_0),), device=args.device)
        if args.class_conditional:
            labels = labels.to(args.device)
            dropped = torch.rand(len(labels), device=args.device) < args.label_dropout
            labels = torch.where(dropped, len(class_names), labels)
        with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.bf16):
            x_t = scheduler.add_noise(x_0, eps, t)
            out = unet(x_t, t, class_labels=labels if args.class_conditional else None).sample
        loss = F.mse_loss(out.float(), training_target(scheduler, x_0, eps, t))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.step(unet.parameters())
        step += 1
        now = time.monotonic()
        elapsed = before + now - started
        loss_mean = loss.item() if loss_mean is None else 0.99 * loss_mean + 0.01 * loss.item()
        if now - last_print > 20:
            last_print = now
            print(f"step {step}/{args.steps}  {elapsed / 60:.1f} min  loss {loss_mean:.4f}  "
                  f"lr {rate:.1e}", flush=True)
        if now - last_save > 60 * args.save_every:
            last_save = now
            save()
    save()
    print(f"done: {step} steps, loss {loss_mean:.4f}, saved to {args.out}")


if __name__ == "__main__":
    main()
