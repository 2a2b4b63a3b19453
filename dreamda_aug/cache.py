"""A content-addressed store of inversions on disk."""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dreamda_aug.errors import CacheError

logger = logging.getLogger(__name__)

FORMAT = "dreamda-inversion"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"


def default_cache_root() -> Path:
    """``$DREAMDA_CACHE``, or ``dreamda_aug`` in the user's cache folder."""
    if "DREAMDA_CACHE" in os.environ:
        return Path(os.environ["DREAMDA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dreamda_aug"


def image_digest(image: Tensor) -> str:
    """SHA-256 of an image's pixels, shape and dtype, in hexadecimal."""
    image = image.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(image.shape)}{image.dtype}".encode())
    digest.update(image.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def cache_key(**parts) -> str:
    """SHA-256, in hexadecimal, of everything that an inversion depends on.

    Args:
        parts: JSON values by name, such as the image digest and the backbone's fingerprint.
    """
    text = json.dumps({**parts, "format_version": FORMAT_VERSION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class CacheInfo:
    """What lies in a cache.

    Attributes:
        root: its folder.
        files: number of inversions.
        bytes: their size on disk.
        max_bytes: the size budget, or None.
    """

    root: Path
    files: int
    bytes: int
    max_bytes: int | None

    def __str__(self) -> str:
        budget = f" of {format_bytes(self.max_bytes)}" if self.max_bytes else ""
        return f"{self.root}: {self.files} inversions, {format_bytes(self.bytes)}{budget}"


class LatentCache:
    """Inversions on disk, one safetensors file each, named by their key.

    A file is written beside its place and moved there in one step, so that a process killed at
    any moment leaves a readable cache, and any number of processes may share one. Each file
    carries its key and a checksum, which are compared whenever it is read.

    Args:
        root: folder of the cache; made if it does not exist.
        max_bytes: size budget; the files that were not used for longest are deleted beyond it.
            None: no limit.
        on_damage: ``"error"`` raises for a file that is damaged, foreign or of another format
            version; ``"rebuild"`` deletes it, says so in the log and reports it as absent.

    Raises:
        ValueError: an argument breaks its rule.
    """

    def __init__(
        self, root: str | Path, *, max_bytes: int | None = None, on_damage: str = "error"
    ):
        if max_bytes is not None and max_bytes <= 0:
            raise ValueError(f"max_bytes must be positive or None, got {max_bytes}.")
        if on_damage not in ("error", "rebuild"):
            raise ValueError(f"on_damage must be 'error' or 'rebuild', got {on_damage!r}.")
        self.root = Path(root)
        self.max_bytes = max_bytes
        self.on_damage = on_damage
        self.root.mkdir(parents=True, exist_ok=True)
        self._bytes = None  # estimate of the size on disk; None: not counted yet

    def __repr__(self) -> str:
        return f"LatentCache({str(self.root)!r}, max_bytes={self.max_bytes})"

    def path(self, key: str) -> Path:
        """Where the file of a key lies."""
        return self.root / key[:2] / (key + SUFFIX)

    def __contains__(self, key: str) -> bool:
        return self.path(key).exists()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under a key, on the CPU, or None.

        Raises:
            CacheError: the file is damaged, foreign or of another version, and ``on_damage`` is
                ``"error"``.
        """
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            tensors = _decode(data, key, path)
        except CacheError as error:
            if self.on_damage == "error":
                raise
            logger.warning("deleting %s", error)
            path.unlink(missing_ok=True)
            return None
        try:
            os.utime(path)  # marks it as recently used
        except OSError:
            pass  # another process evicted it meanwhile, or the cache is read-only
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store tensors under a key; a file that is already there is replaced as a whole."""
        data = _encode(tensors, key)
        path = self.path(key)
        path.parent.mkdir(exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        if self.max_bytes is not None:
            self._bytes = (self.info().bytes if self._bytes is None else self._bytes + len(data))
            if self._bytes > self.max_bytes:
                self._evict()

    def info(self) -> CacheInfo:
        """Number and size of the stored inversions; reads the folder."""
        sizes = [size for _, size, _ in self._files()]
        return CacheInfo(self.root, len(sizes), sum(sizes), self.max_bytes)

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and path of every file, those left by killed writers too."""
        files = []
        for path in self.root.glob("??/*"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # evicted by another process meanwhile
            files.append((stat.st_mtime, stat.st_size, path))
        return files

    def _evict(self) -> None:
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        # to nine tenths: a full cache should not list its folder at every write
        for _, size, path in files[:-1]:
            if total <= 0.9 * self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._bytes = total


def estimate_bytes(latent_shape: tuple[int, ...], steps: int, images: int) -> int:
    """Size of a cache of float16 inversions with residuals, in bytes.

    Args:
        latent_shape: (C, H, W).
        steps: steps that are run per image.
        images: number of images, times paths per image.
    """
    return images * (2 * (steps + 2) * torch.Size(latent_shape).numel() + 512)


def format_bytes(count: int) -> str:
    """A size for people: ``2.6 MB``."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _encode(tensors: dict[str, Tensor], key: str) -> bytes:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "key": key,
                "checksum": _checksum(tensors)}
    return safetensors.torch.save(tensors, metadata)


def _decode(data: bytes, key: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a file's bytes, or a `CacheError` that names file, expected and found."""
    try:
        header_size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + header_size]).get("__metadata__") or {}
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise CacheError(
            f"{path}: expected a safetensors file with an inversion, found {len(data)} bytes that "
            f"cannot be read as one ({error}). Delete the file, or open the cache with "
            "on_damage='rebuild'."
        ) from error
    expected = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "key": key,
                "checksum": _checksum(tensors)}
    for name, value in expected.items():
        if metadata.get(name) != value:
            raise CacheError(
                f"{path}: expected {name} {value!r}, found {metadata.get(name)!r}. Delete the "
                "file, or open the cache with on_damage='rebuild'."
            )
    return tensors
