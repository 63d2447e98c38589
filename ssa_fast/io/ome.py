"""Describe maps as OME does, so that QuPath and napari show their classes as channels, at the image's scale."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from colorsys import hsv_to_rgb
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssa_fast.io.placement import Placement

GOLDEN = 0.618034  # hues that many steps apart are never close


def ome_xml(shape: tuple[int, int, int], names: Sequence[str], pixel_size: tuple[float, float], note: str) -> str:
    """Return OME-XML for K maps (H, W) in a page each: channels by name, pixels (y, x) in µm, and an annotation."""
    import tifffile

    K, H, W = shape
    size = {f"PhysicalSize{axis}": each for axis, each in zip("YX", pixel_size, strict=True)}
    units = dict.fromkeys(("PhysicalSizeXUnit", "PhysicalSizeYUnit"), "µm")
    xml = tifffile.OmeXml(Creator="ssa_fast")
    xml.addimage("uint8", shape, (K, 1, 1, H, W, 1), axes="CYX", Channel={"Name": list(names)}, **size, **units)
    annotation = (
        '<StructuredAnnotations><CommentAnnotation ID="Annotation:0" Namespace="ssa_fast">'
        f"<Value>{escape(note)}</Value></CommentAnnotation></StructuredAnnotations>"
    )
    head, end, tail = xml.tostring().rpartition("</OME>")
    return f"{head}{annotation}{end}{tail}"


def read_metadata(description: str) -> dict[str, Any]:
    """Return the JSON values in the description of a TIFF's first page, from OME-XML too; none of another program's."""
    text = description
    if description.lstrip().startswith("<"):
        try:
            notes = ElementTree.fromstring(description.encode()).iterfind(".//{*}CommentAnnotation")
            text = next((note.findtext("{*}Value") or "" for note in notes if note.get("Namespace") == "ssa_fast"), "")
        except ElementTree.ParseError:
            return {}
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def ome_zarr_levels(count: int, placement: Placement, *, means: bool) -> tuple[list[Any], list[list[Any]]]:
    """Return the axes, and each level's transformations: the scale, and where the centre of its first pixel lies.

    Pixels of a reduced copy are ``means`` of 2×2, centred between these, or every second pixel.
    """
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space"} for name in "yx"]
    size = placement.pixel_size
    if size is None:
        return axes, [[{"type": "scale", "scale": [1.0, 2.0**n, 2.0**n]}] for n in range(count)]
    for axis in axes[1:] if placement.unit else ():
        axis["unit"] = placement.unit
    y, x = placement.origin or (0.0, 0.0)
    levels = []
    for n in range(count):
        shift = (2**n - 1) / 2 if means else 0.0
        scale = {"type": "scale", "scale": [1.0, size[0] * 2**n, size[1] * 2**n]}
        levels.append([scale, {"type": "translation", "translation": [0.0, y + shift * size[0], x + shift * size[1]]}])
    return axes, levels


def omero(names: Sequence[str]) -> dict[str, Any]:
    """Return how viewers show the maps: a name, a colour and the window 0 to 255 each."""
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    channels = []
    for k, name in enumerate(names):
        red, green, blue = (round(255 * each) for each in hsv_to_rgb(k * GOLDEN % 1.0, 1.0, 1.0))
        color = f"{red:02X}{green:02X}{blue:02X}"
        channels.append({"label": name, "color": color, "window": window, "active": True})
    return {"channels": channels, "rdefs": {"model": "color"}}
