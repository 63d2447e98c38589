"""Which TIFFs Pillow reads as they are meant, by their tags; the others need tifffile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssa_fast.io.samples import ImageError

if TYPE_CHECKING:
    from PIL import TiffImagePlugin
    from PIL.Image import Image

    from ssa_fast.io.samples import ReadOptions

BITS, PHOTOMETRIC, DESCRIPTION, SAMPLES, PLANAR, EXTRA, FORMAT = 258, 262, 270, 277, 284, 338, 339
UINT, INT, FLOAT = 1, 2, 3
MINISWHITE, MINISBLACK, RGB, PALETTE, SEPARATED, YCBCR = 0, 1, 2, 3, 5, 6
SEPARATE = 2  # planes
GREYS = {(1, UINT), (2, UINT), (4, UINT), (8, UINT), (12, UINT), (16, UINT), (16, INT), (32, INT), (32, FLOAT)}
REMEDY = "pip install tifffile imagecodecs"


def check_tiff(image: Image, options: ReadOptions, notes: list[str], frames: int) -> int | None:
    """Return the bits in use of a 16-bit sample if they are fewer; note what Pillow leaves out.

    Raises:
        ImageError: Pillow reads it wrongly or only in part, without an error.
    """
    tags: TiffImagePlugin.ImageFileDirectory_v2 = image.tag_v2  # type: ignore[attr-defined]
    depths, samples = set(tags.get(BITS, (1,))), int(tags.get(SAMPLES, 1))
    photometric, extras = tags.get(PHOTOMETRIC, MINISWHITE), tuple(tags.get(EXTRA, ()))
    kind = tags.get(FORMAT, (UINT,))[0]
    colors = samples - len(extras)
    bits = max(depths)
    described = str(tags.get(DESCRIPTION, ""))
    if frames > 1 and (described.startswith("ImageJ=") or "<OME" in described):
        raise ImageError(f"its channels may be pages: {REMEDY}.")
    right = {
        MINISBLACK: samples == 1 and (bits, kind) in GREYS,
        MINISWHITE: samples == 1 and bits <= 8 and kind == UINT,
        PALETTE: samples == 1 and bits <= 8,
        RGB: kind == UINT and colors in (3, 4) and (bits == 8 or (bits == 16 and tags.get(PLANAR, 1) != SEPARATE)),
        YCBCR: samples == 3 and bits == 8,
        SEPARATED: samples == 4 and bits == 8,
    }.get(photometric, False)
    if photometric == MINISBLACK and samples == 2:
        right = bits == 8 and kind == UINT and extras[:1] == (2,) and tags.get(PLANAR, 1) != SEPARATE
    if not right or len(depths) != 1 or (bits == 16 and extras and photometric == RGB):
        raise ImageError(f"Pillow alone does not read its kind of samples: {REMEDY}.")
    if photometric == RGB and (colors == 4 or 0 in extras):
        if options.bands is not None:
            raise ImageError(f"Pillow alone does not read all its bands: {REMEDY}.")
        notes.append("its fourth band, not declared as alpha, is left out.")
    if photometric == RGB and bits == 16:
        if options.range != "auto":
            raise ImageError(f"only 8 of its bits are read, so no range can be chosen: {REMEDY}.")
        notes.append(f"its 16 bits are cut to 8: {REMEDY} keeps them.")
    return bits if bits == 12 else None
