"""The tags of TIFFs: what is no RGB, and what Pillow alone reads as it is meant; the rest needs tifffile."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

from PIL import TiffImagePlugin

from ssa_fast.io.samples import ImageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from PIL.Image import Image

    from ssa_fast.io.samples import ReadOptions

BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION, ORIENTATION = 258, 259, 262, 270, 274
SAMPLES, PLANAR, INK_SET, EXTRA, FORMAT = 277, 284, 332, 338, 339
UINT, INT, FLOAT = 1, 2, 3
MINISWHITE, MINISBLACK, RGB, PALETTE, SEPARATED, YCBCR = 0, 1, 2, 3, 5, 6
NAMES = {4: "MASK", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "CFA", 32844: "LOGL", 32845: "LOGLUV", 34892: "raw"}
SEPARATE = 2  # planes
CMYK = 1  # of INK_SET
PREMULTIPLIED, STRAIGHT = 1, 2  # kinds of alpha
GREYS = {(1, UINT), (2, UINT), (4, UINT), (8, UINT), (12, UINT), (16, UINT), (16, INT), (32, INT), (32, FLOAT)}


def read_tags(path: str | Path) -> dict[int, Any]:
    """Return the tags of a TIFF's first page that say how to show it; none of a file that is no TIFF, or damaged."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags; the decoders refuse what matters
            header = file.read(8)
            header += file.read(8) if header[2:3] == b"\x2b" or header[3:4] == b"\x2b" else b""
            found = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(found.next)
            found.load(file)
            return {code: found[code] for code in (PHOTOMETRIC, ORIENTATION, SAMPLES, INK_SET, EXTRA) if code in found}
    except Exception:  # damaged files raise nearly every exception
        return {}


def check_colors(tags: Mapping[int, Any]) -> None:
    """Raise ImageError if colours are not grey, RGB, YCbCr or CMYK: no decoder converts others as they are meant."""
    photometric, samples = tags.get(PHOTOMETRIC, MINISBLACK), tags.get(SAMPLES, 1)
    if photometric not in (MINISWHITE, MINISBLACK, RGB, PALETTE, SEPARATED, YCBCR):
        raise ImageError(f"its colours are {NAMES.get(photometric, photometric)}: save it as RGB.")
    extras = tags.get(EXTRA, ())
    inks = samples - (len(extras) if isinstance(extras, tuple) else 1)
    if photometric == SEPARATED and (inks != 4 or tags.get(INK_SET, CMYK) != CMYK):
        raise ImageError(f"its {inks} inks are not CMYK: save it as RGB.")


def check_pages(description: str) -> None:
    """Raise ImageError if OME or ImageJ describe pages as channels, for decoders that read one page only."""
    found = re.search(r'^channels=(\d+)|<Pixels[^>]* SizeC="(\d+)"', description, re.MULTILINE)
    if found and int(found[1] or found[2]) > 1:
        raise ImageError("its channels are pages, of which only tifffile reads more than the first.")


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
    if frames > 1 and samples == 1:
        check_pages(str(tags.get(DESCRIPTION, "")))
    in_order = tags.prefix == b"II" or tags.get(COMPRESSION, 1) == 1
    right = {
        # Pillow exchanges the bytes of compressed numbers twice where the file's order is not the machine's.
        MINISBLACK: samples == 1 and (bits, kind) in GREYS and (kind == UINT or in_order),
        MINISWHITE: samples == 1 and bits <= 8 and kind == UINT,
        PALETTE: samples == 1 and bits <= 8,
        RGB: kind == UINT and colors in (3, 4) and (bits == 8 or (bits == 16 and tags.get(PLANAR, 1) != SEPARATE)),
        YCBCR: samples == 3 and bits == 8,
        SEPARATED: samples == 4 and bits == 8,
    }.get(photometric, False)
    if photometric == MINISBLACK and samples == 2:
        right = bits == 8 and kind == UINT and extras[:1] == (STRAIGHT,) and tags.get(PLANAR, 1) != SEPARATE
    if not right or len(depths) != 1 or (bits == 16 and extras and photometric == RGB):
        raise ImageError("Pillow alone does not read its kind of samples.")
    if photometric == RGB and (colors == 4 or 0 in extras):
        if options.bands is not None:
            raise ImageError("Pillow alone does not read all its bands.")
        notes.append("its fourth band, not declared as alpha, is left out.")
    if photometric == RGB and bits == 16:
        if options.range != "auto":
            raise ImageError("Pillow alone reads only 8 of its bits, so no range can be chosen.")
        notes.append("its 16 bits are cut to 8: pip install tifffile imagecodecs keeps them.")
    return bits if bits == 12 else None
