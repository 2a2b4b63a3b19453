"""Calibrations: what was measured about how far a model may move images, and where it lies."""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamda_aug.arguments import check_fields
from dreamda_aug.bundled import WEIGHTS
from dreamda_aug.errors import StorageError
from dreamda_aug.files import read_json, write_atomically
from dreamda_aug.generation.cache import LatentCache
from dreamda_aug.method.settings import DIALS, ResolvedSettings, Settings
from dreamda_aug.models import DiffusionModel
from dreamda_aug.statistics import wilson_interval

# What is taken before anything was measured: mild for the small models we have seen.
UNCALIBRATED = {"noise_scale": 1.0, "replay": 0.9, "strength": 0.5}
# The same for images without labels: at the same distance a low strength keeps more classes than
# exact replay (benchmarks/results/label_free.json), which is left where the strength is given.
WITHOUT_LABELS = {"noise_scale": 1.0, "replay": 0.0, "strength": 0.3}
# What takes the place of a sample's digest where a calibration is for images without labels.
LABEL_FREE = "label-free"
# What names a point.
_NAMES = (*DIALS, "block_index")


@dataclass(frozen=True)
class CalibrationPoint:
    """What one choice of the dials does to the images.

    Attributes:
        strength: as in `Settings`.
        noise_scale: as in `Settings`.
        replay: as in `Settings`.
        agreement: share of replicas that the classifier gives their seed's label, among seeds that
            it labels right itself, in [0, 1].
        distance: root mean square pixel distance from the seed image, in [0, 1].
        diversity: the same between replicas of one seed image.
        steps: reverse steps that were run.
        images: seed images that it was measured on.
        block_index: block of a transformer behind which noise entered, or None for U-Nets.
        judged: how many seed images the classifier labels right itself, or None if that was not
            recorded.
    """

    strength: float
    noise_scale: float
    replay: float
    agreement: float
    distance: float
    diversity: float
    steps: int
    images: int
    block_index: int | None = None
    judged: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the agreement, or None where ``judged`` was not recorded or is 0.

        It counts seed images, not replicas, which are alike and may all fail together.
        """
        return wilson_interval(self.agreement, self.judged) if self.judged else None


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        strength: the chosen strength.
        noise_scale: the chosen scale.
        replay: the chosen replay.
        target: what images had to keep, as text.
        met: whether any point kept it; if not, the closest one was chosen.
        points: all measured points.
        judge: what judged which images keep their class, as text, or "" for nothing.
        sample: digest of the measured images if it holds for their dataset only; "" for a manual
            calibration, which holds for the model.
        block_index: block of a transformer behind which noise entered, for which alone it holds;
            None for U-Nets.
    """

    strength: float
    noise_scale: float
    replay: float
    target: str
    met: bool
    points: list[CalibrationPoint]
    judge: str = ""
    sample: str = ""
    block_index: int | None = None

    @property
    def chosen(self) -> CalibrationPoint:
        """The point that was chosen, as it was measured last."""
        return [point for point in self.points
                if all(getattr(point, name) == getattr(self, name) for name in _NAMES)][-1]

    def metadata(self) -> dict[str, Any]:
        """The choice and its reasons for a dataset's record.

        Points are left out, and so is ``block_index``, which the record holds with its model.
        """
        found = {name: value for name, value in asdict(self).items()
                 if name not in ("points", "block_index")}
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        return {"digest": digest[:32], **found}

    def summary(self) -> str:
        """What was chosen and why, in one line."""
        dials = ", ".join(f"{name}={getattr(self, name):g}" for name in _NAMES
                          if getattr(self, name) is not None)
        why = f"{self.target}{'' if self.met else ', which nothing kept: the closest was taken'}"
        point, agreement, judged_by = self.chosen, "", ""
        if self.judge:
            agreement, judged_by = f", agreement {point.agreement:.2f}", f", judged by {self.judge}"
            if point.interval:
                agreement += " (95 % interval {:.2f} to {:.2f})".format(*point.interval)
        return (f"{dials}: the furthest that images go with {why} (distance {point.distance:.3f}"
                f"{agreement} on {point.images} images{judged_by})")

    def save(self, path: str | Path) -> None:
        """Write it as JSON, as a whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: the file holds something else, or is no regular file.
        """
        data = read_json(path)
        try:
            found = cls(**{**data, "points": [CalibrationPoint(**p) for p in data["points"]]})
            for each in (found, *found.points):
                check_fields(each)
                Settings().with_dials(**{name: getattr(each, name) for name in DIALS})
            _ = found.chosen  # IndexError if it is not among the points
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"{path}: expected a calibration, found other JSON ({error}). Delete the file, and "
                "calibrate anew.") from error
        return found

    def resolve(self, settings: Settings) -> ResolvedSettings:
        """Settings with the measured numbers in place of None."""
        return settings.with_dials(**{name: getattr(self, name) for name in settings.open_dials})


def calibration_path(
    root: Path, settings: Settings, model: DiffusionModel, sample: str = ""
) -> Path:
    """Where a calibration lies beside the cache in ``root``: named by the model, every setting that
    is not measured, and the digest of the images that it holds for, if it holds for them alone."""
    key = hashlib.sha256(f"{model.fingerprint}{settings!r}".encode()).hexdigest()[:32]
    return root / "calibration" / f"{key}{f'.{sample[:32]}' if sample else ''}.json"


def keep_calibration(found: Calibration, path: Path) -> None:
    """Save a calibration; where that fails, a warning tells why."""
    try:
        found.save(path)
    except (OSError, StorageError) as error:
        warnings.warn(f"the calibration could not be saved, and holds for this object only: "
                      f"{error}", stacklevel=4)


def find_calibration(
    settings: Settings, model: DiffusionModel, cache: LatentCache | None, *, shipped: bool = True,
    labeled: bool = True,
) -> Calibration | None:
    """What was measured by hand for a model, or comes with the package; None if there is nothing.

    Args:
        settings: as requested, with None for what was measured.
        model: which it was measured with.
        cache: beside which it lies, or None for no cache.
        shipped: whether one that comes with the package will do.
        labeled: whether the model is conditioned on what images show.
    """
    for root in ([] if cache is None else [cache.root]) + [WEIGHTS] * shipped:
        path = calibration_path(root, settings, model, "" if labeled else LABEL_FREE)
        if path.exists():
            return Calibration.load(path)
    return None


def resolve_dials(
    settings: Settings, model: DiffusionModel, cache: LatentCache | None, *, labeled: bool = True
) -> ResolvedSettings:
    """Put measured numbers in place of None, as `find_calibration` finds them.

    Where nothing was measured yet, mild defaults are taken, with a warning for labeled images.
    """
    if not settings.open_dials:
        return settings.with_dials()
    if found := find_calibration(settings, model, cache, labeled=labeled):
        return found.resolve(settings)
    known = UNCALIBRATED if labeled else WITHOUT_LABELS
    if not labeled and settings.strength is not None:
        known = known | {"replay": 1.0}
    mild = {name: known[name] for name in settings.open_dials}
    if labeled:
        warnings.warn(
            f"{model.name} was not calibrated for these settings yet: taking "
            f"{', '.join(f'{name}={value}' for name, value in mild.items())}. Measure them on your "
            "images with dreamda_aug.calibrate or `dreamda calibrate FOLDER`.", stacklevel=4)
    return settings.with_dials(**mild)
