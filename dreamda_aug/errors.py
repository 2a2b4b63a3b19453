"""Exceptions of this library; wrong arguments raise ``ValueError`` or ``TypeError``."""


class DreamDAError(Exception):
    """Base of every exception that this library defines."""


class ModelError(DreamDAError):
    """A diffusion model cannot be loaded, or cannot be used for bottleneck perturbation."""


class AdaptationError(DreamDAError):
    """An adaptation cannot be trained, or its folder holds another one."""


class CacheError(DreamDAError):
    """A cache file is damaged, foreign, or from another format version."""


class GenerationError(DreamDAError):
    """Images could not be generated, or most of them are broken."""


class ExpansionError(DreamDAError):
    """A synthetic dataset on disk is foreign, damaged, or was made with other settings."""


class StorageError(ExpansionError):
    """A file cannot be written, or does not hold what it should."""
