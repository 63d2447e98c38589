"""The explorer's images: photographs that ship with scikit-image, files of the command line, uploads."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from ssa_fast.explore.refusal import Refusal
from ssa_fast.io.images import ImageError, read_image
from ssa_fast.io.pillow import pillow_errors
from ssa_fast.io.readers.open import size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ssa_fast.explore.cache import Cache

SIDE = 1024
"""The longer side, in pixels, of what is shown and drawn upon."""
MAX_BYTES = 20 << 20
MAX_PIXELS = 1 << 26
MAX_UPLOADS = 32  # that are kept
TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "GIF": "image/gif",
}
"""Pillow's names of the formats that uploads may have -> their media types."""
PHOTOGRAPHS = {
    "chelsea.png": "Chelsea, a cat; Stefan van der Walt, CC0",
    "coffee.png": "A cup of coffee; Rachel Michetti, CC0",
    "rocket.jpg": "DSCOVR on a Falcon 9; SpaceX, released into the public domain",
    "astronaut.png": "Eileen Collins; NASA, in the public domain",
    "camera.png": "A photographer; Lav Varshney, CC0",
}
"""Files in scikit-image's package, and what they show."""

Kind = Literal["photograph", "file", "upload"]


@dataclass(frozen=True)
class Entry:
    """An image that can be chosen.

    Attributes:
        id, name, kind, credit: Of the image; ``name`` is that of its file.
        path: Where it is read from.
        shown_path: Its file as its owner calls it: in commands that read it again.
    """

    id: str
    name: str
    kind: Kind
    credit: str
    path: Path
    shown_path: str


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image.

    Attributes:
        rgb: uint8 (H, W, 3), as the file has it.
        shown: uint8 (h, w, 3), the same no larger than ``SIDE``: the pixels of every box, mask and click.
        notes: How the file was read, one sentence each.
    """

    rgb: NDArray[np.uint8]
    shown: NDArray[np.uint8]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of ``shown``."""
        return self.shown.shape[0], self.shown.shape[1]

    def png(self) -> bytes:
        """Return ``shown`` as a PNG file."""
        file = io.BytesIO()
        Image.fromarray(self.shown).save(file, format="PNG", compress_level=1)  # it travels over no network
        return file.getvalue()


class Gallery:
    """All images that can be chosen.

    Args:
        files: Of the command line, which come first.
        folder: Where uploads are written; nothing is written elsewhere.
        cache: Keeps decoded images.

    Raises:
        ValueError: A file is missing, no image, or larger than ``MAX_PIXELS``.
    """

    def __init__(self, files: Sequence[Path], folder: Path, cache: Cache) -> None:
        self._folder, self._cache = folder, cache
        self._given = [_entry_of_file(number, path) for number, path in enumerate(files, 1)]
        self._given += _photographs()
        self._uploads: OrderedDict[str, Entry] = OrderedDict()
        self._decoding = threading.Lock()  # one at a time: each may take a GB, and Pillow's limit is its process's

    @property
    def entries(self) -> list[Entry]:
        """All images: files, photographs, uploads."""
        return [*self._given, *self._uploads.values()]

    def entry(self, id: str) -> Entry:
        """Return an image; Refusal if there is none of that id."""
        found = next((entry for entry in self.entries if entry.id == id), None)
        if found is None:
            raise Refusal(404, f"the image {id[:40]!r} is not here any more; choose another, or add it again")
        return found

    def add(self, name: str, content: bytes) -> Entry:
        """Check and keep an uploaded file; one that is here already keeps its id.

        Raises:
            Refusal: It is no image of ``TYPES``, is damaged, or has more than ``MAX_PIXELS`` pixels.
        """
        name = _safe_name(name)
        with self._decoding:
            suffix = _check_header(name, content)
        id = hashlib.sha256(content).hexdigest()[:16]
        entry = Entry(id, name, "upload", "", self._folder / f"{id}{suffix}", name)
        entry.path.write_bytes(content)
        try:
            self._decode(entry)
        except Refusal:
            entry.path.unlink()
            self._uploads.pop(entry.id, None)
            raise
        self._uploads[entry.id] = entry
        self._uploads.move_to_end(entry.id)
        while len(self._uploads) > MAX_UPLOADS:
            self._uploads.popitem(last=False)[1].path.unlink()
        return entry

    def picture(self, id: str) -> Picture:
        """Return a decoded image; Refusal if its file is gone or damaged."""
        kept: Picture | None = self._cache.get(("picture", id))
        return kept or self._decode(self.entry(id))

    def _decode(self, entry: Entry) -> Picture:
        try:
            with self._decoding:
                decoded = read_image(entry.path, max_pixels=MAX_PIXELS)
        except (ImageError, MemoryError) as error:
            reason = str(error) or "there is not enough memory to decode it."
            raise Refusal(415, f"{entry.name}: {reason.rstrip('.')}") from None
        rgb = decoded.rgb
        height, width = shown_size(rgb.shape[0], rgb.shape[1])
        shown = rgb
        if (height, width) != rgb.shape[:2]:
            resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
            shown = np.asarray(resized)
        picture = Picture(rgb, shown, decoded.notes)
        self._cache.put(("picture", entry.id), picture, rgb.nbytes + shown.nbytes)
        return picture


def shown_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) at which an image is shown."""
    factor = min(1.0, SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _entry_of_file(number: int, path: Path) -> Entry:
    if path.is_dir():
        raise ValueError(f"images: expected files, {path} is a folder; name the images in it, such as {path / '*.jpg'}")
    try:
        height, width = size_of(path)
    except ImageError as error:
        raise ValueError(f"images: {path}: {error}") from None
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"images: {path} has {height:,} x {width:,} pixels, more than {MAX_PIXELS:,}; ssa-fast run processes large "
            "images in tiles"
        )
    return Entry(f"file{number}", path.name, "file", "", path.resolve(), str(path))


def _photographs() -> list[Entry]:
    """List the photographs that scikit-image's package holds; none where it is not installed."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent / "data"
    return [
        Entry(Path(name).stem, name, "photograph", credit, folder / name, str(folder / name))
        for name, credit in PHOTOGRAPHS.items()
        if (folder / name).is_file()
    ]


def _check_header(name: str, content: bytes) -> str:
    """Return the suffix that goes with a file's own format; Refusal unless it is an image that may be decoded."""
    allowed = f"expected an image ({', '.join(TYPES)})"
    if not content:
        raise Refusal(415, f"{name} is empty; {allowed}")
    try:
        with pillow_errors(None), Image.open(io.BytesIO(content), formats=list(TYPES)) as image:
            (width, height), format = image.size, image.format or ""
    except ImageError as error:
        looks = " (an SVG)" if re.search(rb"<svg[\s>]", content[:4096]) else ""
        reason = "is none" if "not an image" in str(error) else "cannot be read"
        raise Refusal(415, f"{allowed}, {name} {reason}{looks}; save it as one of these") from None
    if math.prod((height, width)) > MAX_PIXELS:
        raise Refusal(
            422, f"{name} has {height:,} x {width:,} pixels, more than {MAX_PIXELS:,}; make the image smaller"
        )
    return f".{format.lower()}"


def _safe_name(name: str) -> str:
    """Return a file's name without folders and control characters."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(char for char in last if char.isprintable())[:120].strip(" .") or "upload"


def too_many_bytes() -> Refusal:
    """Return the refusal of a file with more than ``MAX_BYTES``."""
    return Refusal(413, f"the file has more than {MAX_BYTES >> 20} MiB; make the image smaller")
