"""What was measured about how strong a perturbation a backbone bears, and where it lies."""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dreamda_aug.arguments import real
from dreamda_aug.backbones import Backbone
from dreamda_aug.errors import StorageError
from dreamda_aug.files import parse_json, write_atomically
from dreamda_aug.generation.cache import LatentCache
from dreamda_aug.method.settings import Settings

# What is taken before anything was measured: mild for the small backbones we have seen.
UNCALIBRATED_NOISE_SCALE = 1.0
UNCALIBRATED_ADHERENCE = 0.9

_SHIPPED = Path(__file__).parent.parent / "weights" / "calibration"


@dataclass(frozen=True)
class CalibrationPoint:
    """What one pair of dials does to the images.

    Attributes:
        noise_scale: as in `Settings`.
        adherence: as in `Settings`.
        agreement: share of replicas that the classifier gives their seed's label, among seeds that
            it labels right itself, in [0, 1].
        distance: root mean square pixel distance from the seed image, in [0, 1].
        diversity: the same between replicas of one seed image.
    """

    noise_scale: float
    adherence: float
    agreement: float
    distance: float
    diversity: float


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        noise_scale: the chosen scale.
        adherence: the chosen adherence.
        target: what it had to keep, in words.
        met: whether any point kept it; if not, the one that came closest was chosen.
        points: everything that was tried.
    """

    noise_scale: float
    adherence: float
    target: str
    met: bool
    points: list[CalibrationPoint] = field(default_factory=list)

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
            real("adherence", found.adherence, "lie in [0, 1]", 0, 1)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"{path}: expected a calibration, found other JSON ({error}). Delete the file, and "
                "calibrate anew."
            ) from error
        return found


def calibration_key(settings: Settings, backbone: Backbone) -> str:
    """Names a calibration: the backbone and every setting that is not measured."""
    return hashlib.sha256(f"{backbone.fingerprint}{settings!r}".encode()).hexdigest()[:32]


def resolve_calibrated(
    settings: Settings, backbone: Backbone, cache: LatentCache | None
) -> Settings:
    """Put measured numbers in place of None.

    They come from the cache's folder, or from the package for the bundled backbone. Where nothing
    was measured yet, mild defaults are taken and a warning says so.
    """
    if settings.noise_scale is not None and settings.adherence is not None:
        return settings
    name = calibration_key(settings, backbone) + ".json"
    folders = [_SHIPPED] if cache is None else [cache.root / "calibration", _SHIPPED]
    for folder in folders:
        if (folder / name).exists():
            found = Calibration.load(folder / name)
            noise_scale, adherence = found.noise_scale, found.adherence
            break
    else:
        noise_scale, adherence = UNCALIBRATED_NOISE_SCALE, UNCALIBRATED_ADHERENCE
        warnings.warn(
            f"{backbone.name} was not calibrated for these settings yet: taking "
            f"noise_scale={noise_scale}, adherence={adherence}. Measure them on your images with "
            "dreamda_aug.calibrate or `dreamda calibrate`.", stacklevel=3,
        )
    return replace(
        settings,
        noise_scale=noise_scale if settings.noise_scale is None else settings.noise_scale,
        adherence=adherence if settings.adherence is None else settings.adherence,
    )
