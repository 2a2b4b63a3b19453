"""The tasks of the accuracy study, how their files are read, and how their images are split."""

import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf


@dataclass(frozen=True)
class Images:
    """Labeled images: ``pixels`` (N, C, H, W) uint8 and ``labels`` (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Images":
        return Images(self.pixels[rows], self.labels[rows])


@dataclass(frozen=True)
class Task:
    """One row of the study; everything that its results depend on.

    Attributes:
        name: what the command line calls it.
        read: folder or file -> training and test images.
        image_size: pixels; the model may have another size, as in the library.
        channels: 1 or 3.
        classes: how many.
        shots: pairs of labeled images per class and synthetic images per labeled one (K).
        classifier: a key of `CLASSIFIERS`.
        seen: the first training images in file order, which the model was trained on: no image
            of the study is drawn from them.
        classical: the augmentations, of those in `OPERATIONS`, one of which is chosen on
            validation to go on top of every arm.
        steps: optimizer steps of every arm, a multiple of eight, AMST's parts.
        batch_size: images per step of every arm.
        learning_rate: AdamW's at its peak; cosine decay.
        model: ``"bundled"``, or ``""``: a folder made by `dreamda train`, given with
            ``--model``.
        class_conditional: whether the model that ``--export`` is for is to be trained with
            labels, which is fair only where all training labels are shots.
        reverse_steps: solver steps from pure noise to the image; strength of them are run.
        guidances: guidance scales to choose from on validation.
        weak_views: (probability of a mirrored image, largest shift as a share of the side) to
            choose from on validation.
        validation_images: how many labeled images every choice is made on.
        judge: what knows the true labels of synthetic images: ``"trained"``, the task's classifier
            trained longer on all training labels outside ``seen``; a file with its weights; or
            None: no oracle arm.
        unlabeled: real images without labels that join the pool of the ``unlabeled`` arms.
        corpus: folder with idx files of the labeled images that the model was trained on.
            With it come the arms that use them themselves.
        until_when: only the main arms, and those that expand the images that are hardest.
    """

    name: str
    read: Callable[[Path], tuple[Images, Images]]
    image_size: int
    channels: int
    classes: int
    shots: tuple[tuple[int, int], ...]
    classifier: str
    steps: int
    seen: int = 0
    classical: tuple[str, ...] = ("RandAugment", "TrivialAugmentWide")
    batch_size: int = 64
    learning_rate: float = 2e-3
    model: str = ""
    class_conditional: bool = False
    reverse_steps: int = 10
    guidances: tuple[float, ...] = (1.0, 2.0, 3.0)
    weak_views: tuple[tuple[float, float], ...] = ((0.5, 0.0625), (0.5, 0.125))
    validation_images: int = 500
    judge: str | None = "trained"
    unlabeled: int = 0
    corpus: Path | None = None
    until_when: bool = False


@dataclass(frozen=True)
class Split:
    """The images of one run.

    Attributes:
        shots: the labeled images.
        validation: what choices are made on; the same for all rng seeds.
        test: looked at once, with the final weights.
        unlabeled: pixels of further real training images, (U, C, H, W) uint8, and the labels
            that only reports see.
        rest: all training images but validation; for the judge.
    """

    shots: Images
    validation: Images
    test: Images
    unlabeled: Images
    rest: Images = field(repr=False)


def stratified(labels: Tensor, per_class: int, rng_seed: int) -> Tensor:
    """Rows with ``per_class`` of each class (all of a smaller class), class by class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(rng_seed))
    return torch.cat([order[labels[order] == c][:per_class] for c in labels.unique()])


def split(task: Task, data: tuple[Images, Images], shots: int, rng_seed: int) -> Split:
    """Draw the images of one run: validation is fixed, the shots depend on ``rng_seed``."""
    train, test = data
    if task.seen:
        train = train[torch.arange(task.seen, len(train))]
    # 10**6: no rng seed of a run, so that no run's shots mirror the validation draw.
    held = stratified(train.labels, max(1, task.validation_images // task.classes), 10**6)
    kept = torch.ones(len(train), dtype=torch.bool)
    kept[held] = False
    validation, train = train[held], train[kept.nonzero().squeeze(1)]
    rows = stratified(train.labels, shots, rng_seed)
    others = torch.ones(len(train), dtype=torch.bool)
    others[rows] = False
    others = others.nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(rng_seed)
    unlabeled = others[torch.randperm(len(others), generator=generator)[: task.unlabeled]]
    return Split(train[rows], validation, test, train[unlabeled], train)


# --- readers


def read_idx(folder: Path) -> tuple[Images, Images]:
    """Fashion-MNIST's or MNIST's four idx files, gzipped or not, in one folder."""

    def load(name: str) -> Tensor:
        path = folder / name
        packed = path.with_name(f"{name}.gz")
        raw = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
        # two zero bytes, the type (8: bytes), the number of dimensions, their sizes
        sizes = np.frombuffer(raw, ">i4", raw[3], offset=4)
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)
        return torch.from_numpy(values.copy())

    return tuple(
        Images(load(f"{part}-images-idx3-ubyte")[:, None],
               load(f"{part}-labels-idx1-ubyte").long())
        for part in ("train", "t10k")
    )  # fmt: skip


def read_corpus(task: Task) -> Images:
    """The labeled images that a task's model was trained on, in the task's size."""
    assert task.corpus is not None
    images, _ = read_idx(task.corpus)
    size = [task.image_size, task.image_size]
    return Images(tvf.resize(images.pixels, size, antialias=True), images.labels)


def read_atlases(folder: Path) -> tuple[Images, Images]:
    """CIFAR-10 as PNG atlases: each row of ``data_batch_*.png`` and ``test_batch.png`` is one
    image of 32×32 RGB pixels; labels in ``train_lables.json`` and ``test_lables.json``."""

    def load(pictures: list[Path], labels: str) -> Images:
        rows = np.concatenate([np.asarray(PIL.Image.open(p).convert("RGB")) for p in pictures])
        pixels = torch.from_numpy(rows.reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).contiguous()
        return Images(pixels, torch.tensor(json.loads((folder / labels).read_text())))

    PIL.Image.MAX_IMAGE_PIXELS = None  # an atlas is larger than what Pillow takes for harmless
    return (load(sorted(folder.glob("data_batch_*.png")), "train_lables.json"),
            load([folder / "test_batch.png"], "test_lables.json"))  # fmt: skip


@dataclass(frozen=True)
class ReadUSPS:
    """USPS (Hull 1994) as one npz file with ``train_images``, ``train_labels`` and so on.

    Attributes:
        inverse: black digits on white, a look that a prior of white digits has never seen.
    """

    inverse: bool = False

    def __call__(self, path: Path) -> tuple[Images, Images]:
        with np.load(path, allow_pickle=False) as arrays:
            parts = [(torch.from_numpy(arrays[f"{part}_images"])[:, None],
                      torch.from_numpy(arrays[f"{part}_labels"]).long())
                     for part in ("train", "test")]  # fmt: skip
        train, test = (Images(255 - pixels if self.inverse else pixels, labels)
                       for pixels, labels in parts)
        return train, test


@dataclass(frozen=True)
class ReadClassFolders:
    """Reads ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``, in a folder or anywhere in a zip file.

    Attributes:
        size: images are resized to ``size`` × ``size``.
        mode: Pillow's mode, ``"RGB"`` or ``"L"``.
        train: what the folder of the training images is called.
    """

    size: int
    mode: str = "RGB"
    train: str = "train"

    def __call__(self, place: Path) -> tuple[Images, Images]:
        found = {self.train: [], "test": []}
        for name, content in self._files(place):
            match = re.search(
                rf"(?:^|/)({self.train}|test)/([^/]+)/[^/]+\.(?:jpe?g|png)$", name)
            if match:
                image = PIL.Image.open(io.BytesIO(content())).convert(self.mode)
                image = image.resize((self.size, self.size), PIL.Image.Resampling.LANCZOS)
                pixels = np.array(image).reshape(self.size, self.size, -1)
                found[match[1]].append((match[2], torch.from_numpy(pixels).permute(2, 0, 1)))
        classes = sorted({name for name, _ in found[self.train]})
        return tuple(
            Images(torch.stack([pixels for _, pixels in found[part]]),
                   torch.tensor([classes.index(name) for name, _ in found[part]]))
            for part in (self.train, "test")
        )  # fmt: skip

    def _files(self, place: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
        if place.is_dir():
            for path in sorted(place.rglob("*.*")):
                yield path.relative_to(place).as_posix(), path.read_bytes
        else:
            with zipfile.ZipFile(place) as archive:
                for name in sorted(archive.namelist()):
                    yield name, lambda name=name: archive.read(name)


PRIORS = Path(__file__).parents[1] / "priors"

_CIFAR10 = {"read": read_atlases, "image_size": 32, "channels": 3, "classes": 10,
            "classifier": "resnet18", "steps": 4000, "batch_size": 128, "learning_rate": 1e-3,
            "reverse_steps": 25, "validation_images": 1000}  # fmt: skip
_FASHION = {"read": read_idx, "image_size": 28, "channels": 1, "classes": 10,
            "classifier": "small_cnn", "steps": 640, "seen": 30_000, "model": "bundled",
            # centred images, shoes that all face left: little of both may be best
            "weak_views": ((0.0, 0.04), (0.5, 0.04), (0.5, 0.125))}  # fmt: skip
_USPS = {"image_size": 16, "channels": 1, "classes": 10, "classifier": "small_cnn", "steps": 640,
         "classical": ("affine", "RandAugment"), "model": str(PRIORS / "mnist"),
         "weak_views": ((0.0, 0.0625), (0.0, 0.125))}  # fmt: skip

TASKS = {
    task.name: task
    for task in (
        Task("fashion_mnist", shots=((5, 10), (20, 3)), **_FASHION),
        Task("fashion_mnist_semi", shots=((5, 10),), unlabeled=2000, **_FASHION),
        Task("usps", ReadUSPS(), shots=((3, 10), (1, 30), (5, 10), (20, 3)),
             judge=str(PRIORS / "usps_judge.safetensors"), **_USPS),
        Task("usps_semi", ReadUSPS(), shots=((3, 10),), unlabeled=2000,
             judge=str(PRIORS / "usps_judge.safetensors"), **_USPS),
        Task("usps_inverse", ReadUSPS(inverse=True), shots=((3, 10), (5, 10)),
             judge=str(PRIORS / "usps_inverse_judge.safetensors"), **_USPS),
        Task("cifar10", shots=((20, 20), (50, 20), (250, 10)), **_CIFAR10),
        Task("cifar10_semi", shots=((4, 20), (25, 20)), unlabeled=10_000, **_CIFAR10),
        Task("fashion_mnist_many", shots=((100, 3), (300, 1)), until_when=True,
             **_FASHION | {"steps": 1280}),
        Task("xrays", ReadClassFolders(32, "L", "user"), 32, 1, 2,
             ((10, 10), (5, 10), (20, 5), (50, 3)), "small_cnn", 640, model=str(PRIORS / "xrays"),
             weak_views=((0.0, 0.0625), (0.5, 0.0625), (0.0, 0.125)), validation_images=200),
    )
}  # fmt: skip
