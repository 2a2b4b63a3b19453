"""A content-addressed store of inversions on disk."""

import contextlib
import hashlib
import json
import math
import os
import re
import stat
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dreamda_aug.arguments import checked, whole
from dreamda_aug.errors import CacheError, StorageError
from dreamda_aug.files import TEMPORARY, format_bytes, regular_file, write_atomically

FORMAT_VERSION = 1
SUFFIX = ".safetensors"
# The names that a cache gives; nothing else in its folder is ever counted or deleted.
_OWN = re.compile(rf"[0-9a-f]{{64}}{re.escape(SUFFIX)}|\..*{re.escape(TEMPORARY)}")
# A writer lists the folder anew whenever it has written this share of the budget itself: listing a
# large folder takes seconds, and other processes write to it as well.
_UNLISTED = 0.02


def default_cache_root() -> Path:
    """``$DREAMDA_CACHE``, or ``dreamda_aug`` in the user's cache folder."""
    if chosen := os.environ.get("DREAMDA_CACHE"):  # empty is unset
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "dreamda_aug"


def cache_key(**parts: Any) -> str:
    """SHA-256, in hexadecimal, of everything that an inversion depends on: JSON values by name."""
    text = json.dumps({**parts, "format_version": FORMAT_VERSION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class LatentCache:
    """Inversions on disk, one safetensors file each, named by their key.

    Files are written in one step, so a killed process leaves a readable cache, and any number of
    processes may share it. Each file has a checksum of its key and tensors, which is compared
    whenever it is read. File permissions follow the umask. If the folder cannot be read or
    written, one warning states that, and inversions are computed again.

    Args:
        root: folder of the cache; made if it does not exist.
        max_bytes: size budget, or None for no limit; the least recently used files are deleted to
            stay within it. Processes that write at the same time may exceed it by 2 % each.

    Raises:
        ValueError: an argument breaks its rule.
    """

    @checked
    def __init__(self, root: str | Path, *, max_bytes: int | None = None):
        if not str(root):
            raise ValueError("root must name a folder, got an empty string.")
        self.root = Path(root).expanduser()
        self.max_bytes = None if max_bytes is None else whole("max_bytes", max_bytes, 1)
        self._unlisted, self._has_warned = math.inf, False
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise ValueError(f"root must be a folder, got the file {self.root}.") from None
        except OSError as error:
            self._go_without(error)

    def path(self, key: str) -> Path:
        """Where the file of a key, as `cache_key` gives it, lies."""
        return self.root / key[:2] / (key + SUFFIX)

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under a key, on the CPU, or None.

        Raises:
            CacheError: the file is damaged, foreign or of another version.
        """
        path = self.path(key)
        try:
            data = regular_file(path).read_bytes()
        except FileNotFoundError:
            return None
        except StorageError as error:
            raise CacheError(f"{error} Remove it.") from None
        except OSError as error:
            self._go_without(error)
            return None
        tensors = _decode(data, key)
        if tensors is None:
            raise CacheError(f"{path}: expected an inversion under this key, found {len(data)} "
                             "bytes that are damaged, foreign or of another version. Delete it.")
        # marks it as recently used, unless another process evicted it meanwhile
        with contextlib.suppress(OSError):
            os.utime(path)
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store tensors under a key; a file that is already there is replaced as a whole."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data, path = safetensors.torch.save(tensors, {
            "format": "dreamda-inversion", "checksum": _checksum(tensors, key)}), self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.max_bytes is not None:
                self._make_room(len(data), self.max_bytes)
            write_atomically(path, data)
        except (OSError, StorageError) as error:
            self._go_without(error)

    def sizes(self) -> list[int]:
        """Bytes of each stored inversion; reads the folder."""
        return [size for _, size, _ in self._files()]

    def __str__(self) -> str:
        sizes = self.sizes()
        budget = f" of {format_bytes(self.max_bytes)}" if self.max_bytes else ""
        return f"{self.root}: {len(sizes)} inversions, {format_bytes(sum(sizes))}{budget}"

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and path of every file, those left by killed writers too."""
        files = []
        for path in self.root.glob("[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(OSError):  # evicted meanwhile, or not ours to see
                found = path.lstat()
                if stat.S_ISREG(found.st_mode) and _OWN.fullmatch(path.name):
                    files.append((found.st_mtime, found.st_size, path))
        return files

    def _make_room(self, needed: int, budget: int) -> None:
        """Delete the least recently used files where bytes that are about to be written do not
        fit, down to nine tenths of the budget."""
        self._unlisted += needed
        if self._unlisted < _UNLISTED * budget:
            return
        self._unlisted, files = 0, sorted(self._files())
        used = needed + sum(size for _, size, _ in files)
        goal = (0.9 if used > (1 - _UNLISTED) * budget else 1) * budget
        for _, size, path in files:
            if used <= goal:
                break
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            used -= size

    def _go_without(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            reason = getattr(error, "strerror", None) or error
            warnings.warn(
                f"the cache {self.root} cannot be used ({reason}): inversions are computed anew "
                "where they are not in it. Choose another folder with cache= or $DREAMDA_CACHE.",
                stacklevel=3)


def _checksum(tensors: dict[str, Tensor], key: str) -> str:
    digest = hashlib.sha256(f"{FORMAT_VERSION}{key}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _decode(data: bytes, key: str) -> dict[str, Tensor] | None:
    """The tensors in a file's bytes, or None if they are not what `put` wrote for this key."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        tensors = safetensors.torch.load(data)
        expected = header["__metadata__"]["checksum"]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return tensors if expected == _checksum(tensors, key) else None
