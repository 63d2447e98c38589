"""What the explorer does, without the web: images, networks, kept features, views and correlations."""

from __future__ import annotations

import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast import correlation
from ssa_fast.explore.cache import Cache
from ssa_fast.explore.images import SIDE, Gallery
from ssa_fast.explore.networks import Networks
from ssa_fast.explore.refusal import Refusal
from ssa_fast.explore.views import compute, variant
from ssa_fast.models.scores import probabilities
from ssa_fast.models.stage_affinity import choose_affinities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ssa_fast.explore.images import Picture
    from ssa_fast.explore.networks import Network
    from ssa_fast.explore.settings import CorrelationRequest, NetworkRequest, ViewSettings
    from ssa_fast.explore.views import View
    from ssa_fast.models.extract import Features
    from ssa_fast.models.stage_affinity import Sign
    from ssa_fast.models.zoo import Size
    from ssa_fast.ssa import SSA

MAX_VIEWS = 4096  # whose settings are kept, so that what was dropped from memory can be computed again


@dataclass(eq=False)
class Kept:
    """An image's features: maps of the stages, and of the layer that an exact CAM is made from, without a graph.

    Attributes:
        features: Maps and logits.
        signs: Stage name -> the sign of its features, by which "auto" chooses affinities.
        milliseconds: What the network took.
        seeds: (kind of seed, layer, class) -> (1, 1, h, w), of seeds that need the network again.
    """

    features: Features
    signs: dict[str, Sign]
    milliseconds: float
    seeds: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes held: of the maps' storages, which may hold more than the maps."""
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in self.features.maps.values()}
        return sum(each.nbytes() for each in storages.values())


class Session:
    """One user's explorer. Its methods are to be called by one thread at a time, but for those of ``gallery``.

    Args:
        files: Images of the command line.
        model, weights, device, download: See ``Networks``.
        memory: Bytes of features, decoded images and views that are kept.

    Raises:
        ValueError, ModuleNotFoundError: An image or a network that cannot be used.
    """

    def __init__(
        self,
        files: Sequence[Path] = (),
        *,
        model: str | None = None,
        weights: str = "DEFAULT",
        device: torch.device | str = "cpu",
        download: bool = False,
        memory: int = 10**9,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="ssa-fast-explore-", ignore_cleanup_errors=True)
        try:
            self.folder = Path(self._temporary.name)
            self.cache = Cache(memory)
            self.gallery = Gallery(files, self.folder, self.cache)
            self.networks = Networks(model, weights, device=device, download=download)
            self._settings: OrderedDict[str, ViewSettings] = OrderedDict()
        except BaseException:
            self._temporary.cleanup()
            raise

    def close(self) -> None:
        """Remove the temporary folder."""
        self._temporary.cleanup()

    def look(self, request: NetworkRequest) -> dict[str, Any]:
        """Run a network on an image and keep its features; return stages and the most probable classes, for JSON."""
        network, picture = self.networks.get(request.network), self.gallery.picture(request.image)
        ssa = network.ssa(request.stage_names)
        size, note = input_size(network, picture, request.size)
        kept, _ = self._features(network, ssa, request, picture, size)
        height, width = network.classifier.input_shape(picture.rgb.shape[0], picture.rgb.shape[1], size)
        own = network.ssa().stage_names
        stages = []
        for name, ref in network.candidates.items():
            shape = (-(-height // ref.layout.stride[0]), -(-width // ref.layout.stride[1]))
            h, w = kept.features.maps[name].shape[2:] if name in kept.features.maps else map(int, shape)
            stages.append(
                {"name": name, "channels": ref.layout.channels, "height": h, "width": w, "default": name in own}
            )
        logits = kept.features.logits[0]
        best = probabilities(logits, ssa.probability).topk(min(5, len(logits)))
        names = network.classifier.categories
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {
            "stages": stages,
            "predicted": [{"index": i, "name": names[i], "probability": p} for i, p in found],
            "num_classes": len(names),
            "notes": [*picture.notes, *network.classifier.notes, *ssa.info.notes, *note],
        }

    def view(self, settings: ViewSettings) -> View:
        """Return a view, computed unless it is kept.

        Raises:
            Refusal: A setting does not go with the network or the image.
        """
        self._settings[settings.id] = settings
        self._settings.move_to_end(settings.id)
        while len(self._settings) > MAX_VIEWS:
            self._settings.popitem(last=False)
        kept: View | None = self.cache.get(("view", settings.id))
        if kept is not None:
            return kept
        network, picture = self.networks.get(settings.network), self.gallery.picture(settings.image)
        _check_classes(settings.classes, network)
        ssa = variant(network.ssa(settings.stage_names, settings.seed), settings)
        size, _ = input_size(network, picture, settings.size)
        features, milliseconds = self._features(network, ssa, settings, picture, size, settings.classes)
        seed = self._seed(network, ssa, features, settings.classes)
        view = compute(ssa, features.features, seed, settings, picture.size, milliseconds)
        self.cache.put(("view", settings.id), view, view.nbytes)
        return view

    def view_by_id(self, id: str, *, full: bool = False) -> View:
        """Return a view that was asked for before, computed again if it is no longer kept.

        Raises:
            Refusal: No view had this id.
        """
        settings = self._settings.get(id)
        if settings is None:
            raise Refusal(404, "this view is not here any more; change a setting, or reload the page")
        view = self.view(settings)
        return self.view(settings.model_copy(update={"full": True})) if full and view.preview else view

    def size_of(self, settings: NetworkRequest) -> tuple[Size, list[str]]:
        """Return the size at which a view's image enters the network, as ``ssa-fast run --size``, and notes."""
        network, picture = self.networks.get(settings.network), self.gallery.picture(settings.image)
        return input_size(network, picture, settings.size)

    def correlation(self, request: CorrelationRequest) -> dict[str, Tensor]:
        """Return a pixel's affinity to all others, (h, w) by stage; where features are kept, from them alone."""
        kept = self.kept(request)
        if kept is None:
            network, picture = self.networks.get(request.network), self.gallery.picture(request.image)
            size, _ = input_size(network, picture, request.size)
            kept, _ = self._features(network, network.ssa(request.stage_names), request, picture, size)
        maps = {name: kept.features.maps[name] for name in kept.signs}
        affinities = choose_affinities(request.affinities, kept.signs)
        found = correlation(maps, (request.y, request.x), affinity=affinities)
        return {name: each[0].float().cpu() for name, each in found.items()}

    def kept(self, request: NetworkRequest) -> Kept | None:
        """Return the features that are kept for a request, None if there are none."""
        found: Kept | None = self.cache.get(_key(request))
        return found

    def _features(
        self,
        network: Network,
        ssa: SSA,
        request: NetworkRequest,
        picture: Picture,
        size: Size,
        classes: Sequence[int] = (),
    ) -> tuple[Kept, float]:
        """Return an image's features, and the milliseconds that the network took for it now; 0 if they were kept."""
        kept = self.kept(request)
        needed = _missing(ssa, kept, classes)
        if kept is not None and not needed:
            return kept, 0.0
        start = time.perf_counter()
        pixels = network.classifier.preprocess(picture.rgb, size)
        height, width = pixels.shape[2:]
        try:
            with torch.inference_mode(False), torch.no_grad():
                found = ssa.info.forward(ssa.model, pixels)
                index = torch.tensor([needed], device=pixels.device)
                seeds = ssa.info.seed_maps(ssa.model, found, index, ssa.align_corners) if needed else None
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a network may fail in any way at a size that it was not made for
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise Refusal(
                422, f"{network.listed.name} cannot take an image of {height} x {width} ({reason}); choose another size"
            ) from error
        milliseconds = 1e3 * (time.perf_counter() - start)
        if kept is None:
            plain = replace(found, output=None, logits=found.logits.detach().float(), leaves={}, values=())
            kept = Kept(plain, ssa.info.signs, milliseconds)
        kept.features.maps.update({name: each for name, each in found.maps.items() if name not in kept.features.maps})
        if seeds is not None and ssa.seed_kind != "cam":
            for k, index_of_class in enumerate(needed):
                kept.seeds[(ssa.seed_kind, ssa.seed_layer, index_of_class)] = seeds[:, k : k + 1]
        self.cache.put(_key(request), kept, kept.nbytes)
        return kept, milliseconds

    def _seed(self, network: Network, ssa: SSA, kept: Kept, classes: Sequence[int]) -> Tensor:
        """Return the seeds (1, K, h, w) of classes: an exact CAM from the kept maps, others as they were kept."""
        if ssa.seed_kind != "cam":
            return torch.cat([kept.seeds[(ssa.seed_kind, ssa.seed_layer, each)] for each in classes], 1)
        index = torch.tensor([list(classes)], device=self.networks.device)
        with torch.no_grad():
            return ssa.info.seed_maps(ssa.model, kept.features, index, ssa.align_corners)


def input_size(network: Network, picture: Picture, side: int | None) -> tuple[Size, list[str]]:
    """Return the size at which an image enters a network, as ``ssa-fast run --size`` takes it, and notes.

    It has at most ``SIDE``² pixels; without a ``side`` it is that at which the image is shown.
    """
    height, width = picture.rgb.shape[:2]
    if network.classifier.input_size is not None:
        only = "{} x {}".format(*network.classifier.input_size)
        name = network.listed.name
        return None, [] if side is None else [f"{name} takes images of {only} only; the size {side} is not used"]
    if side is None:
        return (None if picture.size == (height, width) else picture.size), []
    h, w = network.classifier.input_shape(height, width, side)
    if h * w <= SIDE**2:
        return side, []
    factor = SIDE / (h * w) ** 0.5
    smaller = max(1, int(h * factor)), max(1, int(w * factor))
    instead = "{} x {}".format(*smaller)
    return smaller, [f"at the size {side} the image would have {h} x {w} pixels; it enters the network with {instead}"]


def _key(request: NetworkRequest) -> tuple[Any, ...]:
    return "features", request.network, request.image, request.size, request.stage_names


def _missing(ssa: SSA, kept: Kept | None, classes: Sequence[int]) -> list[int]:
    """Return the classes whose seeds need the network."""
    if ssa.seed_kind == "cam":
        return list(classes) if kept is not None and ssa.seed_layer not in kept.features.maps else []
    held = {} if kept is None else kept.seeds
    return [each for each in classes if (ssa.seed_kind, ssa.seed_layer, each) not in held]


def _check_classes(classes: Sequence[int], network: Network) -> None:
    count = len(network.classifier.categories)
    if wrong := [each for each in classes if each >= count]:
        raise Refusal(422, f"classes: {network.listed.name} has classes 0 to {count - 1}, got {wrong[0]}")
    if len(set(classes)) < len(classes):
        raise Refusal(422, f"classes: expected each class once, got {list(classes)}")
