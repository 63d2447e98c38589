"""The explorer's web application: routes, and the threads that work for them."""

from __future__ import annotations

import asyncio
import base64
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import quote

import numpy as np
import torch
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from ssa_fast import __version__
from ssa_fast.explore import downloads, reproduce
from ssa_fast.explore.images import MAX_BYTES, MAX_PIXELS, SIDE, TYPES
from ssa_fast.explore.refusal import Refusal
from ssa_fast.explore.security import Guard
from ssa_fast.explore.settings import (
    AFFINITIES,
    CorrelationRequest,
    DownloadOptions,
    NetworkRequest,
    ViewSettings,
)
from ssa_fast.explore.views import variant
from ssa_fast.localize import colormaps
from ssa_fast.validation import FUSES

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ssa_fast.explore.session import Session
    from ssa_fast.explore.views import View

T = TypeVar("T")

STATIC = Path(__file__).with_name("static")
STATIC_TYPES = {  # a system's own table may call JavaScript something that a browser does not run
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
SEEDS = ("auto", "grad-cam", "layercam")
UPLOADS_AT_ONCE = 4  # whose bytes are in memory
CLOSED_BY_CLIENT = 499  # nobody reads it


class Lane:
    """A thread that does one thing at a time, in the order asked; what nobody waits for any more is left out."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"ssa_fast-{name}")
        self._turn = asyncio.Lock()
        self._busy = False

    async def do(self, request: Request, work: Callable[[], T]) -> T:
        """Return what ``work`` does in the thread; HTTPException if client or server have gone meanwhile."""
        try:
            async with self._turn:
                if await request.is_disconnected():
                    raise HTTPException(CLOSED_BY_CLIENT)
                return await asyncio.get_running_loop().run_in_executor(self._thread, partial(self._work, work))
        except asyncio.CancelledError:  # by uvicorn, once the time for answers under way is over
            raise HTTPException(503, "the server was stopped") from None

    def _work(self, work: Callable[[], T]) -> T:
        self._busy = True
        try:
            return work()
        finally:
            self._busy = False

    def close(self) -> bool:
        """Take no more work; return whether the thread is idle."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        return not self._busy


class Explorer:
    """The application of one session.

    Args:
        session: What it shows.
        token: The first part of every path.
        host: What the server is bound to.

    Attributes:
        app: The ASGI application.
    """

    def __init__(self, session: Session, *, token: str, host: str = "127.0.0.1") -> None:
        self.session = session
        self.compute = Lane("compute")  # networks and views
        self.files = Lane("files")  # images, downloads, and correlations by kept features: never behind a slow view
        self._uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)
        inner = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        inner.include_router(self._router(), prefix=f"/{token}")
        for kind, handler in (
            (HTTPException, _http_error),
            (RequestValidationError, _invalid),
            (ValueError, _refused),
            (ModuleNotFoundError, _not_installed),
            (TypeError, _refused),
            (MemoryError, _no_memory),
            (torch.OutOfMemoryError, _no_memory),
            (Exception, _failed),
        ):
            inner.add_exception_handler(kind, handler)
        self.app = Guard(inner, token=token, host=host)

    def close(self) -> bool:
        """Take no more work and remove the temporary folder; return whether no computation is left running."""
        idle = [lane.close() for lane in (self.compute, self.files)]
        self.session.close()
        return all(idle)

    def _router(self) -> APIRouter:
        router = APIRouter()
        for path, call, methods in (
            ("/api/options", self.options, ["GET"]),
            ("/api/images", self.upload, ["POST"]),
            ("/api/images/{id}", self.image, ["GET"]),
            ("/api/network", self.network, ["POST"]),
            ("/api/names", self.names, ["GET"]),
            ("/api/view", self.view, ["POST"]),
            ("/api/view/{id}/map", self.map, ["GET"]),
            ("/api/view/{id}/download/{name}", self.download, ["GET"]),
            ("/api/correlation", self.correlation, ["POST"]),
            ("/{name}", static_file, ["GET", "HEAD"]),
            ("/", static_file, ["GET", "HEAD"]),
        ):
            router.add_api_route(path, call, methods=methods, response_model=None)
        return router

    async def options(self) -> dict[str, Any]:
        """Return what can be chosen."""
        images = [
            {"id": e.id, "name": e.name, "kind": e.kind, "credit": e.credit} for e in self.session.gallery.entries
        ]
        listed = self.session.networks.listed.values()
        networks = [{"name": e.name, "title": e.title, "available": not e.reason, "reason": e.reason} for e in listed]
        tables = {name: base64.b64encode(colormaps.table(name).tobytes()).decode() for name in colormaps.COLORMAPS}
        return {
            "version": __version__,
            "images": images,
            "networks": networks,
            "colormaps": tables,
            "default_colormap": colormaps.COLORMAPS[0],
            "affinities": [{"value": value, "title": title} for value, title in AFFINITIES.items()],
            "fusions": list(FUSES),
            "seeds": list(SEEDS),
            "limits": {"bytes": MAX_BYTES, "pixels": MAX_PIXELS, "types": list(TYPES.values()), "side": SIDE},
        }

    async def upload(self, request: Request, name: str = "upload") -> JSONResponse:
        """Keep the image that the body is."""
        async with self._uploads:
            content = bytearray()
            async for chunk in request.stream():  # which Guard ends at the limit
                content += chunk
            gallery = self.session.gallery
            entry = await self.files.do(request, lambda: gallery.add(name, bytes(content)))
        picture = await self.files.do(request, lambda: gallery.picture(entry.id))
        height, width = picture.size
        kept = {"id": entry.id, "name": entry.name, "kind": entry.kind, "width": width, "height": height}
        return JSONResponse({**kept, "notes": list(picture.notes)}, status_code=201)

    async def image(self, id: str, request: Request) -> Response:
        """Return an image as PNG, at the size that it is shown at."""
        content = await self.files.do(request, lambda: self.session.gallery.picture(id).png())
        return Response(content, media_type="image/png")

    async def network(self, body: NetworkRequest, request: Request) -> dict[str, Any]:
        """Run a network on an image; return its stages and the most probable classes."""
        return await self.compute.do(request, partial(self.session.look, body))

    async def names(self, network: str, request: Request, q: str = "") -> dict[str, Any]:
        """Search a network's class names."""
        loaded = await self.compute.do(request, partial(self.session.networks.get, network))
        return {"names": [{"index": index, "name": name} for index, name in loaded.search(q[:200])]}

    async def view(self, body: ViewSettings, request: Request) -> dict[str, Any]:
        """Compute a view and return everything about it but its maps."""
        return await self.compute.do(request, partial(self._view, body))

    async def map(self, id: str, kind: str, request: Request, stage: str = "", k: int = 0) -> Response:
        """Return one map of a view as float32, little-endian, row by row."""
        result = (await self._find(id, request)).result
        maps = {"seed": result.seed, "fused": result.cams, "stage": result.stages.get(stage)}.get(kind)
        if maps is None or not 0 <= k < maps.shape[1]:
            raise Refusal(404, "the view has no such map; reload the page")
        return Response(_raw(maps[0, k]), media_type="application/octet-stream")

    async def correlation(self, body: CorrelationRequest, request: Request) -> dict[str, Any]:
        """Return the affinity of a pixel to all others, in every stage."""
        lane = self.compute if self.session.kept(body) is None else self.files
        maps = await lane.do(request, partial(self.session.correlation, body))
        stages = []
        for name, values in maps.items():
            (height, width), (low, high) = values.shape, values.aminmax()
            data = base64.b64encode(_raw(values)).decode()
            ends = {"low": float(low), "high": float(high)}
            stages.append({"name": name, "height": height, "width": width, **ends, "data": data})
        return {"stages": stages}

    async def download(
        self, id: str, name: str, request: Request, options: Annotated[DownloadOptions, Query()]
    ) -> Response:
        """Return a file of a view, in full even if the view is a preview."""
        if name not in downloads.TYPES:
            raise Refusal(404, f"there is no file {name[:40]!r}; choose one of {', '.join(downloads.TYPES)}")
        view = await self._find(id, request, full=True)
        content = await self.files.do(request, partial(self._file, view, name, options))
        stem = Path(self.session.gallery.entry(view.settings.image).name).stem
        return Response(
            content, media_type=downloads.TYPES[name], headers={"Content-Disposition": _attachment(f"{stem}-{name}")}
        )

    async def _find(self, id: str, request: Request, *, full: bool = False) -> View:
        """Return a view by its id: at once if it is kept, computed again if not."""
        kept: View | None = self.session.cache.get(("view", id))
        if kept is not None and not (full and kept.preview):
            return kept
        return await self.compute.do(request, partial(self.session.view_by_id, id, full=full))

    def _view(self, settings: ViewSettings) -> dict[str, Any]:
        session, view = self.session, self.session.view(settings)
        entry, network = session.gallery.entry(settings.image), session.networks.get(settings.network)
        picture, (size, note) = session.gallery.picture(settings.image), session.size_of(settings)
        result, device = view.result, session.networks.device
        rows = zip(settings.classes, result.names[0], result.scores[0].tolist(), strict=True)
        stages = [
            {
                "name": name,
                "height": stage.size[0],
                "width": stage.size[1],
                "method": stage.choice.method,
                "kernel": "Triton" if stage.choice.backend == "triton" else "PyTorch",
                "milliseconds": stage.milliseconds,
                "dense_bytes": stage.dense_bytes,
                "reason": stage.choice.why,
            }
            for name, stage in view.stages.items()
        ]
        return {
            "id": settings.id,
            "image": _size(result.cams),
            "classes": [{"index": i, "name": n, "probability": p} for i, n, p in rows],
            "seed": {**_size(result.seed), "kind": view.seed_kind},
            "stages": stages,
            "fused": _size(result.cams),
            "milliseconds": {"features": view.features_ms, "polish": view.polish_ms},
            "dense_bytes": sum(stage.dense_bytes for stage in view.stages.values()),
            "preview": bool(view.preview),
            "preview_reason": view.preview,
            "notes": list(dict.fromkeys([*picture.notes, *network.classifier.notes, *result.notes, *note])),
            "threshold": list(view.levels),
            "background": view.background,
            "command": reproduce.command(settings, entry, network, size, device),
            "python": reproduce.python(settings, entry, network, size, device, picture.size),
        }

    def _file(self, view: View, name: str, options: DownloadOptions) -> bytes:
        session, settings = self.session, view.settings
        entry, picture = session.gallery.entry(settings.image), session.gallery.picture(settings.image)
        if name == "mask.png":
            return downloads.mask(view, options, session.folder)
        if name == "boxes.json":
            return downloads.boxes(view, entry, options)
        if name != "cams.npz":
            return downloads.figure(view, picture, options, name.partition(".")[2])
        network, (size, _) = session.networks.get(settings.network), session.size_of(settings)
        ssa = variant(network.ssa(settings.stage_names, settings.seed), settings)
        return downloads.cams(view, entry, picture, network, ssa, size, session.folder)


async def static_file(name: str = "index.html") -> Response:
    """Return a file of the page."""
    path = STATIC / name
    if "/" in name or "\\" in name or path.suffix not in STATIC_TYPES or not path.is_file():
        return Response(status_code=404)
    return Response(path.read_bytes(), media_type=STATIC_TYPES[path.suffix])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to ``host`` and ``port``, 0 for a free one.

    Raises:
        ValueError: The address cannot be had.
    """
    try:
        info = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(info[0], info[1])
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(info[4])
            bound.listen(128)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"host, port: {host}:{port} cannot be listened on ({reason}); choose others") from None
    return bound


def _size(maps: Tensor) -> dict[str, int]:
    return {"height": maps.shape[-2], "width": maps.shape[-1]}


def _raw(values: Tensor) -> bytes:
    return values.contiguous().numpy().astype(np.dtype("<f4"), copy=False).tobytes()


def _attachment(name: str) -> str:
    """Return a Content-Disposition header for a file's name in any script."""
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "-_. ()") else "_" for char in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _error(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status_code=status)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return Response(status_code=404)
    return _error(error.status_code, str(error.detail))


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    message = str(first["msg"]).removeprefix("Value error, ")
    return _error(422, message if message.startswith(f"{where}:") else f"{where or 'request'}: {message}")


def _refused(request: Request, error: Exception) -> Response:
    return _error(error.status if isinstance(error, Refusal) else 422, " ".join(str(error).split()))


def _not_installed(request: Request, error: Exception) -> Response:
    return _error(501, str(error))


def _no_memory(request: Request, error: Exception) -> Response:
    return _error(503, "there is not enough memory for this; choose a smaller size or network")


def _failed(request: Request, error: Exception) -> Response:
    if "allocate memory" in str(error):  # PyTorch's allocator raises a plain RuntimeError
        return _no_memory(request, error)
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return _error(500, f"the server could not do this ({reason}); its terminal shows more")
