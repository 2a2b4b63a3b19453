"""What was measured about how far a model may take images, and where it lies."""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dreamda_aug.arguments import real, whole
from dreamda_aug.errors import StorageError
from dreamda_aug.files import parse_json, write_atomically
from dreamda_aug.generation.cache import LatentCache
from dreamda_aug.method.settings import Settings
from dreamda_aug.models import DiffusionModel

# What is taken before anything was measured: mild for the small models we have seen.
UNCALIBRATED_NOISE_SCALE = 1.0
UNCALIBRATED_REPLAY = 0.9
UNCALIBRATED_STRENGTH = 0.5

# The settings that may be None, which means: as calibrated.
DIALS = ("strength", "noise_scale", "replay")

_SHIPPED = Path(__file__).parent.parent / "weights" / "calibration"


@dataclass(frozen=True)
class CalibrationPoint:
    """What one choice of the dials does to the images.

    Attributes:
        noise_scale: as in `Settings`.
        replay: as in `Settings`.
        agreement: share of replicas that the classifier gives their seed's label, among seeds that
            it labels right itself, in [0, 1].
        distance: root mean square pixel distance from the seed image, in [0, 1].
        diversity: the same between replicas of one seed image.
        strength: as in `Settings`; None in records of before 0.2.
        steps: reverse steps that were run; None in records of before 0.2.
        images: seed images that it was measured on; None in records of before 0.2.
        block_index: behind which block of a transformer noise entered; None for U-Nets.
    """

    noise_scale: float
    replay: float
    agreement: float
    distance: float
    diversity: float
    strength: float | None = None
    steps: int | None = None
    images: int | None = None
    block_index: int | None = None


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        noise_scale: the chosen scale.
        replay: the chosen replay.
        target: what it had to keep, in words.
        met: whether any point kept it; if not, the one that came closest was chosen.
        points: everything that was tried.
        strength: the chosen strength; None in records of before 0.2.
        judge: what said which images keep their class, in words; "" where none was asked.
        sample: digest of the images that it was measured on, if it holds for their dataset alone;
            "" if it was asked for by hand, and holds for the model.
        block_index: behind which block of a transformer noise entered, for which alone it holds;
            None for U-Nets.
    """

    noise_scale: float
    replay: float
    target: str
    met: bool
    points: list[CalibrationPoint] = field(default_factory=list)
    strength: float | None = None
    judge: str = ""
    sample: str = ""
    block_index: int | None = None

    @property
    def chosen(self) -> CalibrationPoint | None:
        """The point that was chosen, as it was measured last; None where points were not kept."""
        found = [point for point in self.points
                 if (point.noise_scale, point.replay, point.strength, point.block_index)
                 == (self.noise_scale, self.replay, self.strength, self.block_index)]
        return found[-1] if found else None

    def facts(self) -> dict[str, Any]:
        """The choice and its reasons, without the points, for a dataset's record.

        The hook is left out: the record holds that of its model.
        """
        found = {name: value for name, value in asdict(self).items()
                 if name not in ("points", "block_index")}
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        return {"digest": digest[:32], **found}

    def summary(self) -> str:
        """What was chosen and why, in one line."""
        dials = [f"{name}={getattr(self, name):g}" for name in (*DIALS, "block_index")
                 if getattr(self, name) is not None]
        why = f"{self.target}{'' if self.met else ', which nothing kept: the closest was taken'}"
        point = self.chosen
        if point is None:
            return f"{', '.join(dials)} ({why})"
        measured = f"distance {point.distance:.3f}"
        if self.judge:
            measured += f", agreement {point.agreement:.2f}"
        if point.images:
            measured += f" on {point.images} images"
        return (f"{', '.join(dials)}: the furthest that images go with {why} ({measured}"
                f"{f', judged by {self.judge}' if self.judge else ''})")

    def save(self, path: str | Path) -> None:
        """Write it as JSON, as a whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            StorageError: the file holds something else.
        """
        data = parse_json(Path(path).read_bytes(), str(path))
        try:
            points = [CalibrationPoint(**point) for point in data["points"]]
            found = cls(**{**data, "points": points})
            real("noise_scale", found.noise_scale, "be a number >= 0", 0)
            real("replay", found.replay, "lie in [0, 1]", 0, 1)
            if found.strength is not None:
                real("strength", found.strength, "lie in [0, 1]", 0, 1)
            if found.block_index is not None:
                whole("block_index", found.block_index, 0)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"{path}: expected a calibration, found other JSON ({error}). Delete the file, and "
                "calibrate anew."
            ) from error
        return found


def is_calibrated(settings: Settings) -> bool:
    """Whether every dial is a number."""
    return all(getattr(settings, name) is not None for name in DIALS)


def calibration_key(settings: Settings, model: DiffusionModel) -> str:
    """Names a calibration: the model and every setting that is not measured."""
    return hashlib.sha256(f"{model.fingerprint}{settings!r}".encode()).hexdigest()[:32]


def calibration_path(
    folder: Path, settings: Settings, model: DiffusionModel, sample: str = ""
) -> Path:
    """Where a calibration lies.

    Args:
        folder: the cache's.
        settings: as they were asked for, with None for what was measured.
        model: which it was measured with.
        sample: digest of the images that it holds for; "": it holds for the model.
    """
    key = calibration_key(settings, model)
    return folder / "calibration" / f"{key}{f'.{sample[:32]}' if sample else ''}.json"


def find_calibration(
    settings: Settings, model: DiffusionModel, cache: LatentCache | None, *, shipped: bool = True
) -> Calibration | None:
    """What was measured by hand for a model, or comes with the package; None: nothing.

    Args:
        settings: as they were asked for, with None for what was measured.
        model: which it was measured with.
        cache: beside which it lies; None: nowhere.
        shipped: whether one that comes with the package will do.
    """
    name = calibration_key(settings, model) + ".json"
    folders = [] if cache is None else [cache.root / "calibration"]
    for folder in [*folders, _SHIPPED] if shipped else folders:
        if (folder / name).exists():
            return Calibration.load(folder / name)
    return None


def with_calibration(settings: Settings, found: Calibration) -> Settings:
    """Settings with the measured numbers in place of None."""
    numbers = {name: getattr(found, name) for name in DIALS if getattr(settings, name) is None}
    if numbers.get("strength", 0.0) is None:
        raise StorageError(
            "this calibration is of before 0.2, and says nothing of strength; calibrate anew."
        )
    return replace(settings, **numbers)


def resolve_calibrated(
    settings: Settings, model: DiffusionModel, cache: LatentCache | None
) -> Settings:
    """Put measured numbers in place of None.

    They come from the cache's folder, or from the package for the bundled model. Where nothing
    was measured yet, mild defaults are taken and a warning says so.
    """
    if is_calibrated(settings):
        return settings
    found = find_calibration(settings, model, cache)
    if found is None:
        found = Calibration(UNCALIBRATED_NOISE_SCALE, UNCALIBRATED_REPLAY, "", False,
                            strength=UNCALIBRATED_STRENGTH)
        taken = ", ".join(f"{name}={getattr(found, name)}" for name in
                          ("noise_scale", "replay", "strength")
                          if getattr(settings, name) is None)
        warnings.warn(
            f"{model.name} was not calibrated for these settings yet: taking {taken}. Measure "
            "them on your images with dreamda_aug.calibrate or `dreamda calibrate FOLDER`.",
            stacklevel=4,
        )
    return with_calibration(settings, found)
