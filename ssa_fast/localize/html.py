"""Show CAMs as a small piece of HTML, as notebooks do: no script, nothing loaded, readable on light and dark."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from ssa_fast.localize.colormaps import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

IMAGES, CLASSES = 4, 5  # shown at most: together some 150 kB
SIDE = 96  # pixels of a picture's longer side
WIDE = 960  # pixels of an image of a file
NAME = 60  # characters of a name
LEVELS = 64  # of colour: the eye sees no step, and the file is half as large as with 256
GREY = "rgba(128, 128, 128, .6)"  # a line that shows on white and on black


def maps_html(maps: Mapping[str, Tensor], captions: Sequence[Sequence[str]], title: str, lines: Sequence[str]) -> str:
    """Return pictures of maps side by side, per image and class, ``IMAGES`` and ``CLASSES`` at most.

    Args:
        maps: Title -> (B, K, h, w), or (B, K, D, h, w) of which the middle slice is shown, in [0, 1]; NaN is grey. The
            last one's shape is that of the pictures.
        captions: Per image the captions of its first classes, the only ones that are shown; other maps are padding.
        title: The first line.
        lines: Lines below the pictures.
    """
    shown = {name: _thumbnails(stack[:IMAGES, :CLASSES]) for name, stack in maps.items()}
    height, width = list(maps.values())[-1].shape[-2:]
    scale = SIDE / max(height, width)
    box = f'width="{max(1, round(width * scale))}" height="{max(1, round(height * scale))}"'
    bar = _picture(np.linspace(0, 1, LEVELS, dtype=np.float32)[None], "colours from 0 to 1", 'width="96" height="10"')
    what = " | ".join(maps) + (", middle slices" if next(iter(maps.values())).ndim == 5 else "")
    body = [f"<div><b>{escape(title)}</b></div>", f"<div>{escape(what)} &nbsp; 0 {bar} 1</div>"]
    for b, names in enumerate(captions[:IMAGES]):
        figures = [] if names else ["<div>no class</div>"]
        for k, name in enumerate(names[:CLASSES]):
            pictures = (_picture(stack[b, k], f"{what} of {name}", box) for what, stack in shown.items())
            figures.append(
                '<figure style="margin: 0; max-width: 208px; overflow-wrap: anywhere">'
                f"{' '.join(pictures)}<figcaption>{escape(_short(name))}</figcaption></figure>"
            )
        if (more := len(names) - CLASSES) > 0:
            figures.append(f'<div style="align-self: center">and {more} more class{"es" * (more > 1)}</div>')
        body.append(
            f'<div style="border-top: 1px solid {GREY}; margin-top: 6px; padding-top: 4px">image {b}'
            f'<div style="display: flex; flex-wrap: wrap; gap: 12px">{"".join(figures)}</div></div>'
        )
    if (more := len(captions) - IMAGES) > 0:
        body.append(f'<div style="margin-top: 6px">and {more} more image{"s" * (more > 1)}: result[{IMAGES}:]</div>')
    body += [f"<div>{escape(line)}</div>" for line in lines]
    return f'<div style="line-height: 1.4">{"".join(body)}</div>'


def file_html(path: Path, title: str, lines: Sequence[str]) -> str:
    """Return the image in a file, ``WIDE`` pixels wide at most, between a title and lines; or why it is not shown."""
    try:
        with Image.open(path) as image:
            image.thumbnail((WIDE, WIDE))
            jpeg = io.BytesIO()
            image.convert("RGB").save(jpeg, "JPEG", quality=85)
            box = f'width="{image.width}" height="{image.height}"'
        picture = f'<img src="{_address(jpeg, "jpeg")}" alt="{escape(path.name)}" {box} style="max-width: 100%">'
    except OSError as error:
        picture = f"<div>not shown: {escape(str(error))}</div>"
    body = [f"<div><b>{escape(title)}</b></div>", picture, *(f"<div>{escape(line)}</div>" for line in lines)]
    return f'<div style="line-height: 1.4">{"".join(body)}</div>'


def _thumbnails(stack: Tensor) -> NDArray[np.float32]:
    """Return maps (b, k, h, w) as an array, each side at most ``SIDE``, averaged where they are larger."""
    stack = stack.detach().float()
    if stack.ndim == 5:
        stack = stack[:, :, stack.shape[2] // 2]
    scale = SIDE / max(stack.shape[-2:])
    if scale < 1 and stack.numel():
        height, width = (max(1, round(side * scale)) for side in stack.shape[-2:])
        stack = adaptive_avg_pool2d(stack, (height, width))
    return stack.cpu().numpy()


def _picture(values: NDArray[np.float32], alt: str, box: str) -> str:
    """Return a map (h, w) as an ``img`` with its PNG in the address, enlarged by the browser without smoothing."""
    levels = np.rint(values.clip(0, 1) * (LEVELS - 1))
    image = Image.fromarray(np.where(np.isnan(levels), LEVELS, levels).astype(np.uint8), mode="P")
    colours = table()[np.linspace(0, 255, LEVELS).round().astype(int)]
    image.putpalette([*colours.ravel().tolist(), 128, 128, 128])
    png = io.BytesIO()
    image.save(png, "PNG", optimize=True)
    return f'<img src="{_address(png, "png")}" alt="{escape(_short(alt))}" {box} style="image-rendering: pixelated">'


def _address(file: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _short(name: str) -> str:
    return name if len(name) <= NAME else name[: NAME - 1] + "…"
