"""Where the pixels of an image lie: georeference, and size of a pixel, as they go on to the outputs in its place."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from xml.etree import ElementTree

from PIL import Image

from ssa_fast.io.geotiff import dataset_tags, path_tags, tiff_tags
from ssa_fast.io.pillow import exif_orientation
from ssa_fast.io.readers.open import SLIDE_SUFFIXES, TIFF_SUFFIXES
from ssa_fast.io.readers.zarr import is_zarr

if TYPE_CHECKING:
    from ssa_fast.io.geotiff import GeoTags

Resolution: TypeAlias = "tuple[tuple[int, int], tuple[int, int], int]"  # TIFF's: x, y as fractions, and the unit

ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, DESCRIPTION = 274, 282, 283, 296, 270
INCH, CENTIMETER = 2, 3  # of RESOLUTION_UNIT; 1 means that only the ratio of the two resolutions is known
MICROMETERS = {
    **dict.fromkeys(("µm", "μm", "\\u00b5m", "um", "micron", "microns", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("nm", "nanometer"), 1e-3),
    **dict.fromkeys(("mm", "millimeter"), 1e3),
    **dict.fromkeys(("cm", "centimeter"), 1e4),
    **dict.fromkeys(("in", "inch"), 25_400.0),
    **dict.fromkeys(("m", "meter"), 1e6),
}
WORLD_FILES = (".tfw", ".tifw", ".jgw", ".pgw", ".wld")


@dataclass(frozen=True)
class Placement:
    """The place and scale of an image; all of it may be unknown.

    A reader of your own tells it by an attribute ``placement``.

    Attributes:
        pixel_size: (y, x) in µm.
        origin: (y, x) of the first pixel's centre in µm, None if nobody says.
        unit: "micrometer", or empty for an OME-Zarr whose scale has none.
        resolution: TIFF's tags XResolution and YResolution as fractions, and ResolutionUnit; from ``pixel_size`` if the
            image has none.
        geo: GeoTIFF's tags, see ``geotiff``.
        notes: What could not be taken over, one sentence each.
    """

    pixel_size: tuple[float, float] | None = None
    origin: tuple[float, float] | None = None
    unit: str = "micrometer"
    resolution: Resolution | None = None
    geo: GeoTags = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def tiff_resolution(self, factor: int) -> dict[str, Any]:
        """Return the arguments of tifffile for a copy whose pixels are ``factor`` times as large."""
        if self.resolution is not None:
            x, y, unit = self.resolution
            return {"resolution": ((x[0], x[1] * factor), (y[0], y[1] * factor)), "resolutionunit": unit}
        if self.pixel_size is None or not self.unit:
            return {}
        per_cm = tuple(1e4 / (size * factor) for size in self.pixel_size[::-1])
        return {"resolution": per_cm, "resolutionunit": CENTIMETER}


def find_placement(source: Any, size: tuple[int, int]) -> Placement:
    """Return the placement of an image of ``size`` (H, W), which ``readers.open_image`` accepts.

    Metadata that cannot be read or do not fit the image never stop the work: they are left out, with a note.
    """
    try:
        found = _find(source, size)
    except Exception as error:  # damaged metadata raise nearly every exception
        reason = f"its place and scale cannot be read ({type(error).__name__}: {error}), so the outputs have none."
        return Placement(notes=(reason,))
    sizes = (*(found.pixel_size or ()), *(found.origin or ()))
    if not all(abs(each) < float("inf") for each in sizes) or any(each <= 0 for each in found.pixel_size or ()):
        reason = f"its pixel size {found.pixel_size} is not positive, so the outputs have none."
        return replace(found, pixel_size=None, origin=None, resolution=None, notes=(*found.notes, reason))
    return found


def _find(source: Any, size: tuple[int, int]) -> Placement:
    if not isinstance(source, str | Path):
        if hasattr(source, "properties") and hasattr(source, "read_region"):
            return _of_slide(source)
        if hasattr(source, "colorinterp"):
            return Placement(geo=dataset_tags(source))
        given = getattr(source, "placement", None)
        return given if isinstance(given, Placement) else Placement()
    path = Path(source)
    if is_zarr(path):
        return _of_zarr(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return Placement()
    if suffix in SLIDE_SUFFIXES:
        import openslide

        with openslide.OpenSlide(str(path)) as slide:
            return _of_slide(slide)
    if suffix in TIFF_SUFFIXES and importlib.util.find_spec("tifffile") is not None:
        found, orientation = _of_tiff(path, size)
    else:
        found, orientation = _of_other(path)
    return _turned(_with_sidecars(found, path), orientation)


def _of_tiff(path: Path, size: tuple[int, int]) -> tuple[Placement, int]:
    """Return the placement of a TIFF's first page as it is stored, and its orientation tag."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        tags, stored = page.tags, (page.imagelength, page.imagewidth)
        if stored not in (size, size[::-1]):
            return Placement(notes=("its place and scale are those of another page: the outputs have none.",)), 1
        orientation = tags[ORIENTATION].value if ORIENTATION in tags else 1
        resolution = _resolution(tags)
        pixel_size = _of_imagej(file, resolution) or _of_resolution(resolution)
        if file.is_ome and file.ome_metadata:
            pixel_size = _of_ome(file.ome_metadata) or pixel_size
        elif DESCRIPTION in tags and (mpp := re.search(r"\bMPP\s*=\s*([\d.]+)", str(tags[DESCRIPTION].value))):
            pixel_size = (float(mpp[1]),) * 2  # of an Aperio slide
        if pixel_size != _of_resolution(resolution):
            resolution = None  # OME, ImageJ and Aperio mean their own numbers
        return Placement(pixel_size, resolution=resolution, geo=tiff_tags(page)), int(orientation)


def _resolution(tags: Any) -> Resolution | None:
    """Return the tags if they say anything: not zero, and not the 1 : 1 that many programs write."""
    if X_RESOLUTION not in tags or Y_RESOLUTION not in tags:
        return None
    (xn, xd), (yn, yd) = (tuple(map(int, tags[code].value)) for code in (X_RESOLUTION, Y_RESOLUTION))
    unit = int(tags[RESOLUTION_UNIT].value) if RESOLUTION_UNIT in tags else INCH
    if 0 in (xn, xd, yn, yd) or (unit not in (INCH, CENTIMETER) and xn * yd == yn * xd):
        return None
    return (xn, xd), (yn, yd), unit


def _of_resolution(resolution: Resolution | None) -> tuple[float, float] | None:
    if resolution is None or resolution[2] not in (INCH, CENTIMETER):
        return None
    (xn, xd), (yn, yd), unit = resolution
    length = MICROMETERS["inch" if unit == INCH else "centimeter"]
    return length * yd / yn, length * xd / xn


def _of_imagej(file: Any, resolution: Resolution | None) -> tuple[float, float] | None:
    """ImageJ's unit is in its description, its pixels per unit in the tags, whose own unit is none."""
    unit = MICROMETERS.get(str((file.imagej_metadata or {}).get("unit", "")).lower()) if file.is_imagej else None
    tags = file.pages.first.tags
    if unit is None or X_RESOLUTION not in tags or Y_RESOLUTION not in tags:
        return None
    (xn, xd), (yn, yd) = tags[X_RESOLUTION].value, tags[Y_RESOLUTION].value
    return (unit * yd / yn, unit * xd / xn) if xn and yn else None


def _of_ome(xml: str) -> tuple[float, float] | None:
    """Return the physical size of a pixel of the first image, in OME's default unit or the one named."""
    pixels = next((each for each in ElementTree.fromstring(xml).iter() if each.tag.endswith("}Pixels")), None)
    sizes = []
    for axis in "YX":
        size = None if pixels is None else pixels.get(f"PhysicalSize{axis}")
        unit = "µm" if pixels is None else pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if size is None or unit.lower() not in MICROMETERS:
            return None
        sizes.append(float(size) * MICROMETERS[unit.lower()])
    return sizes[0], sizes[1]


def _of_slide(slide: Any) -> Placement:
    y, x = (slide.properties.get(f"openslide.mpp-{axis}") for axis in "yx")
    return Placement(None if y is None or x is None else (float(y), float(x)))


def _of_zarr(path: Path) -> Placement:
    """Compose the transformations of an OME-Zarr's full resolution, or of the level that ``path`` is."""
    multiscale = _multiscale(path)
    level = None if multiscale else path.name
    multiscale = multiscale or _multiscale(path.parent)
    axes = multiscale.get("axes", [])
    chosen = [each for each in multiscale.get("datasets", []) if level in (None, each["path"])]
    if not chosen or not axes or isinstance(axes[0], str):
        return Placement()  # before OME-Zarr 0.4 there were neither units nor transformations
    scale, origin = [1.0] * len(axes), [0.0] * len(axes)
    for holder in (chosen[0], multiscale):  # a level's own first, then those of all levels
        for step in holder.get("coordinateTransformations", ()):
            if step["type"] == "scale":
                scale, origin = ([a * b for a, b in zip(each, step["scale"], strict=True)] for each in (scale, origin))
            elif step["type"] == "translation":
                origin = [a + b for a, b in zip(origin, step["translation"], strict=True)]
    names = [axis["name"] for axis in axes]
    y, x = names.index("y"), names.index("x")
    units = [axes[n].get("unit", "") for n in (y, x)]
    pixel_size, corner = (scale[y], scale[x]), (origin[y], origin[x])
    if not all(unit in MICROMETERS for unit in units):  # napari overlays them all the same
        placed = pixel_size != (1.0, 1.0) or corner != (0.0, 0.0)
        notes = () if not any(units) else (f"its unit {' and '.join(units)} is not known: scales are kept without it.",)
        return Placement(pixel_size, corner, unit="", notes=notes) if placed else Placement(notes=notes)
    uy, ux = (MICROMETERS[unit] for unit in units)
    return Placement((pixel_size[0] * uy, pixel_size[1] * ux), (corner[0] * uy, corner[1] * ux))


def _multiscale(path: Path) -> dict[str, Any]:
    """Return the first image of an OME-Zarr group; empty if ``path`` is none."""
    import zarr

    try:
        attributes = dict(zarr.open_group(str(path), mode="r").attrs)
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    found = attributes.get("ome", attributes).get("multiscales")
    return dict(found[0]) if found else {}


def _of_other(path: Path) -> tuple[Placement, int]:
    """Return the resolution in the header of what Pillow reads, and the orientation tag."""
    with Image.open(path) as image:
        orientation, (x, y) = exif_orientation(image), image.info.get("dpi", (0, 0))
    if not (x > 0 and y > 0):
        return Placement(), orientation
    return Placement((MICROMETERS["inch"] / float(y), MICROMETERS["inch"] / float(x))), orientation


def _with_sidecars(found: Placement, path: Path) -> Placement:
    """Add the georeference that stands in files beside an image; rasterio reads them."""
    if found.geo:
        return found
    if importlib.util.find_spec("rasterio") is not None:
        return replace(found, geo=path_tags(path))
    beside = [path.with_suffix(suffix) for suffix in WORLD_FILES]
    if any(each.exists() for each in beside):
        reason = (
            "the world file beside it is read with rasterio only: pip install rasterio, or the outputs have no place."
        )
        return replace(found, notes=(*found.notes, reason))
    return found


def _turned(found: Placement, orientation: int) -> Placement:
    """Return the placement of the upright image: a georeference is that of the pixels as they are stored."""
    if orientation >= 5:  # rows and columns are exchanged
        size, resolution = found.pixel_size, found.resolution
        found = replace(
            found,
            pixel_size=size and size[::-1],
            resolution=resolution and (resolution[1], resolution[0], resolution[2]),
        )
    if orientation == 1 or not found.geo:
        return found
    reason = "its orientation tag turns it away from its georeference, so the outputs have none: save it upright."
    return replace(found, geo=(), notes=(*found.notes, reason))
