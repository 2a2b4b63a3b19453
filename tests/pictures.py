"""Small images of every kind for the tests."""

import numpy as np
import PIL.Image

MODES = ["L", "RGB", "RGBA", "LA", "P", "1", "I;16", "I", "F", "CMYK"]


def picture(mode, size=(20, 24), rng_seed=0):
    """A PIL image of random pixels; ``size`` is width and height."""
    array = np.random.default_rng(rng_seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = PIL.Image.fromarray(array)
    if mode == "I;16":
        return PIL.Image.fromarray(array[..., 0].astype(np.uint16) * 16)
    if mode in ("I", "F"):
        return PIL.Image.fromarray(array[..., 0].astype(np.int32 if mode == "I" else np.float32))
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(PIL.Image.fromarray(array[..., 1]))
        return image
    return image.convert(mode)


def kind_of(image):
    """What an image must have in common with one that takes its place."""
    if isinstance(image, PIL.Image.Image):
        return image.mode, image.size
    return type(image), image.dtype, image.shape


def array(shape, dtype="u1"):
    """An image array of random numbers in [0, 255], or floats in [0, 1]."""
    values = np.random.default_rng(0).integers(0, 256, shape)
    return (values / 255 if np.dtype(dtype).kind == "f" else values).astype(dtype)
