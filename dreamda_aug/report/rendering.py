"""Pages as text in which every value is escaped, and images as a page and its figures need them."""

import base64
import hashlib
import io
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dreamda_aug.inputs.pixels import read_pixels
from dreamda_aug.inputs.samples import SURROGATES

# At this side or below an image stays pixel for pixel what it is.
SMALL_SIDE = 64
# Side of the grey image whose pixels are an image's features.
FEATURE_SIDE = 16
# Longer side at which replicas are compared.
_COMPARED_SIDE = 256


def render_page(template: str, script: str, *styles: str, **values: Any) -> str:
    """A page as one file that asks nothing of a network: every value is escaped, and its policy
    lets no other script run than this one.

    Args:
        template: name of the page's template.
        script: name of its script.
        styles: names of its style sheets, joined in this order.
        values: what the template is filled with.
    """
    def packaged(name: str) -> str:
        return (files("dreamda_aug.report") / "templates" / name).read_text("utf-8")

    source = packaged(script)
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return _environment().get_template(template).render(
        values, style=Markup("".join(map(packaged, styles))), script=Markup(source),
        script_hash=f"sha256-{digest}")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("dreamda_aug.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=_for_html)


def _for_html(value: object) -> Markup:
    if isinstance(value, Markup):
        return value
    return escape(SURROGATES.sub("\ufffd", str(value)))


class Thumbnail(NamedTuple):
    """An image on a page.

    Attributes:
        data: a data URI.
        side: its longer side, in pixels.
        features: grey pixels of the image at 16 × 16, (256,) in [0, 1].
    """

    data: str
    side: int
    features: Tensor


def eight_bits(image: Any) -> PIL.Image.Image:
    """An image that `read_pixels` takes in mode L or RGB."""
    made: PIL.Image.Image = F.to_pil_image((read_pixels(image).values[0] * 255).round().byte())
    return made


def make_thumbnail(image: Any, max_side: int) -> Thumbnail:
    """Scale an image of any kind down, never up."""
    image = eight_bits(image)
    grey = image.convert("L").resize((FEATURE_SIDE, FEATURE_SIDE), PIL.Image.Resampling.BOX)
    features = _pixels(grey).flatten().float() / 255
    # pixel for pixel where single pixels are seen
    kind = "png" if max(image.size) <= SMALL_SIDE else "jpeg"
    image.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=75, optimize=True)
    data = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Thumbnail(data, max(image.size), features)


def pair_distances(images: Sequence[PIL.Image.Image]) -> tuple[float, int]:
    """Sum of the root mean square pixel distances between all pairs, and how many pairs there are.

    Args:
        images: at most 256 pixels of each side are compared; images of another shape than the
            first are left out.
    """
    flat = []
    for image in images:
        small = eight_bits(image)
        small.thumbnail((_COMPARED_SIDE, _COMPARED_SIDE))
        flat.append(_pixels(small))
    flat = [pixels.flatten().float() / 255 for pixels in flat if pixels.shape == flat[0].shape]
    if len(flat) < 2:
        return 0.0, 0
    distances = torch.pdist(torch.stack(flat)) / len(flat[0]) ** 0.5
    return distances.sum().item(), len(distances)


def _pixels(image: PIL.Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))
