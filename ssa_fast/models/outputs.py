"""Find the logits in what a network returns: a tensor, or one of several in a tuple, a mapping or an object.

What is the logits is decided by the layers that each tensor depends on (``models.flow``), never by its place: features
are read by a later layer, probabilities are computed from logits, an auxiliary head leaves the trunk early. Where that
does not single one out, the caller has to say it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ssa_fast.models.flow import FlowTracker

if TYPE_CHECKING:
    from ssa_fast.models.flow import Origin

Logits: TypeAlias = "int | str | Callable[[Any], Tensor] | None"
"""Where the logits are: an index, a key or attribute, or a function of the network's output; None: by evidence."""

Path: TypeAlias = "tuple[int | str, ...]"

DEEPER = 3  # times as many layers with maps of its own that the main head must have, compared with an auxiliary one
SUM_TOLERANCE = 1e-3  # of a sum of probabilities, in half precision too
HINT = "pass logits=: an index, a key, or a function of the output"


@dataclass(frozen=True)
class LogitsRef:
    """Reference to the logits in a network's output.

    Attributes:
        path: Keys, attributes and indices that lead from the output to the tensor.
        function: The caller's function of the output, instead of ``path``.
        activation: Function that the network ends in ("softmax", "sigmoid", …); the logits are the values before it.
        num_classes: Number of logits of an image; 0 if not known yet.
        notes: What was assumed, one sentence each.
        missing: Why there are no logits; None if there are.
    """

    path: Path = ()
    function: Callable[[Any], Tensor] | None = None
    activation: str | None = None
    num_classes: int = 0
    notes: tuple[str, ...] = ()
    missing: str | None = None

    def follow(self) -> AbstractContextManager[FlowTracker | None]:
        """Return a context for the forward pass and ``read``, that follows what precedes a final activation."""
        return FlowTracker() if self.activation else nullcontext()

    def read(self, output: Any, images: int, flow: FlowTracker | None) -> Tensor:
        """Return the logits (images, num_classes) of a forward pass that ran within ``follow()``.

        Raises:
            ValueError: The output has another form than that of the sample image.
        """
        tensor = self.select(output)
        if self.activation:
            origin = flow.find(tensor) if flow is not None else None
            if origin is None or origin.before is None or origin.activation != self.activation:
                raise ValueError(
                    f"model: expected an output that ends in {self.activation}, as on the sample image, got another; "
                    f"{HINT}"
                )
            tensor = origin.before
        if tensor.numel() != images * self.num_classes:
            raise ValueError(
                f"model: expected {self.num_classes} logits for each of {images} images, as for the sample image, got "
                f"{tuple(tensor.shape)}; {HINT}"
            )
        return tensor.reshape(images, self.num_classes)

    def select(self, output: Any) -> Tensor:
        """Return the tensor in ``output`` that ``path`` or ``function`` names."""
        if self.function is not None:
            output = self.function(output)
        for key in self.path:
            try:
                output = _get(output, key)
            except (LookupError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"logits: expected {key!r} in the output, which has {_describe_keys(output)}; name one of these"
                ) from error
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(f"model: expected a tensor of logits, floating-point, got {kind}; {HINT}")
        return output


def find_logits(output: Any, flow: FlowTracker, logits: Logits, run_two: Callable[[], Any]) -> LogitsRef:
    """Find the logits in the output of one image.

    Args:
        output: What the network returned.
        flow: Followed the forward pass, and is active.
        logits: Where they are, if the caller has said it.
        run_two: Returns the output of two images, None if the network takes one only; called where the axis of the
            images was squeezed away.

    Raises:
        TypeError: There is no tensor of numbers, or ``logits`` is of the wrong kind.
        ValueError: There are no logits (B, num_classes), or several tensors may be the logits.
    """
    if logits is not None:
        ref = _as_asked(logits)
        return _complete(ref, ref.select(output), flow, run_two)
    if isinstance(_named(output), Tensor):
        ref = LogitsRef(("logits",))
        return _complete(ref, ref.select(output), flow, run_two)
    tensors = {path: tensor for path, tensor in _iter_tensors(output) if tensor.is_floating_point()}
    if not tensors:
        raise TypeError(
            f"model: expected it to return a tensor of logits, got {type(output).__name__}; wrap the model, or {HINT}"
        )
    vectors = {path: tensor for path, tensor in tensors.items() if _is_vector(tensor)}
    if not vectors:
        shape = tuple(next(iter(tensors.values())).shape)
        raise ValueError(f"model: expected logits of shape (B, num_classes), got {shape}; pass a classifier, or {HINT}")
    if len(vectors) > 1 and any(tensor.ndim < 2 for tensor in vectors.values()):
        two = run_two()
        vectors = {path: tensor for path, tensor in vectors.items() if _is_per_image(path, tensor, two)} or vectors
    vectors = _without_copies(vectors, flow)
    path = _choose(vectors, flow)
    notes: tuple[str, ...] = ()
    if len(vectors) > 1:
        others = ", ".join(_describe(path, tensor) for path, tensor in vectors.items())
        notes = (f"model: of the outputs {others}, {_name(path)} is taken for the logits; logits= names another",)
    return _complete(LogitsRef(path, notes=notes), vectors[path], flow, run_two)


def try_logits(output: Any, flow: FlowTracker, logits: Logits, run_two: Callable[[], Any]) -> LogitsRef:
    """Find the logits as ``find_logits`` does; if nobody said where they are and there are none, say why."""
    try:
        return find_logits(output, flow, logits, run_two)
    except (TypeError, ValueError) as error:
        if logits is not None:
            raise
        return LogitsRef(missing=str(error))


def _as_asked(logits: Logits) -> LogitsRef:
    if isinstance(logits, int | str) and not isinstance(logits, bool):
        return LogitsRef((logits,))
    if callable(logits):
        return LogitsRef(function=logits)
    raise TypeError(f"logits: expected an index, a key or a function of the output, got {type(logits).__name__}")


def _complete(ref: LogitsRef, tensor: Tensor, flow: FlowTracker, run_two: Callable[[], Any]) -> LogitsRef:
    """Add what the values of one image tell: the number of classes, and the activation at the end."""
    if not _is_vector(tensor):
        raise ValueError(
            f"model: expected logits of shape (B, num_classes), got {tuple(tensor.shape)}; pass a classifier, or {HINT}"
        )
    if tensor.ndim < 2 and ref.function is None and not _is_per_image(ref.path, tensor, run_two()):
        raise ValueError(
            f"model: expected one row of logits per image, but {_name(ref.path)} has the same shape "
            f"{tuple(tensor.shape)} for two images, as a loss has; {HINT}"
        )
    origin = flow.find(tensor)
    activation = None if origin is None or origin.before is None else origin.activation
    notes = ref.notes
    if activation:
        notes += (f"model: it ends in {activation}; the logits are the values before it",)
    elif tensor.numel() > 1 and bool((tensor >= 0).all()) and abs(float(tensor.double().sum()) - 1) < SUM_TOLERANCE:
        notes += (
            "model: its outputs are positive and sum to 1, but no softmax was seen: the CAMs are of probabilities; "
            f"return the values before, too, and {HINT}",
        )
    return LogitsRef(ref.path, ref.function, activation, tensor.numel(), notes)


def _choose(vectors: Mapping[Path, Tensor], flow: FlowTracker) -> Path:
    """Return the path of the only tensor that can be the logits."""
    if len(vectors) == 1:
        return next(iter(vectors))
    origins = {path: flow.find(tensor) for path, tensor in vectors.items()}
    known = {path: origin for path, origin in origins.items() if origin is not None}
    left = [
        path
        for path, origin in known.items()
        if not any(_precludes(known[other], vectors[other], origin) for other in known if other != path)
    ]
    if len(left) != 1 or len(known) < len(origins):
        each = ", ".join(_describe(path, tensor) for path, tensor in vectors.items())
        raise ValueError(
            f"model: expected one output to be the logits by the layers that it depends on, got {each}; {HINT}"
        )
    return left[0]


def _precludes(other: Origin, tensor: Tensor, origin: Origin) -> bool:
    """Return whether a tensor of origin ``other`` shows that one of ``origin`` is not the logits."""
    if origin.weighted == other.weighted:  # computed from the same layers: one is the last layer's own output
        return origin.before is tensor or other.steps == 0 < origin.steps
    if origin.weighted | other.weighted == other.weighted:  # features: the other passes further layers
        return True
    own, others = origin.spatial & ~other.spatial, other.spatial & ~origin.spatial
    return others.bit_count() >= max(1, DEEPER * own.bit_count())  # a head on an earlier map


def _without_copies(vectors: Mapping[Path, Tensor], flow: FlowTracker) -> dict[Path, Tensor]:
    """Drop tensors that are given again, in another shape or dtype."""
    kept: dict[Path, Tensor] = {}
    for path, tensor in vectors.items():
        if not any(_is_copy(tensor, other, flow) for other in kept.values()):
            kept[path] = tensor
    return kept


def _is_copy(a: Tensor, b: Tensor, flow: FlowTracker) -> bool:
    if a is b:
        return True
    origins = [flow.find(a), flow.find(b)]
    if None in origins or a.numel() != b.numel() or len({origin.weighted for origin in origins if origin}) > 1:
        return False
    return torch.equal(a.flatten().float(), b.flatten().float())


def _named(output: Any) -> Any:
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)


def _iter_tensors(output: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Yield the tensors in tuples, lists, mappings, dataclasses and other plain objects, each with its path."""
    if isinstance(output, Tensor):
        yield path, output
    for key, value in _items(output):
        yield from _iter_tensors(value, (*path, key))


def _items(output: Any) -> Iterator[tuple[int | str, Any]]:
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, tuple | list):
        yield from zip(getattr(output, "_fields", range(len(output))), output, strict=True)
    elif is_dataclass(output):
        yield from ((field.name, getattr(output, field.name)) for field in fields(output))
    elif not isinstance(output, Tensor) and hasattr(output, "__dict__"):
        yield from ((key, value) for key, value in vars(output).items() if isinstance(value, Tensor))


def _get(output: Any, key: int | str) -> Any:
    if isinstance(key, str) and not isinstance(output, Mapping):
        return getattr(output, key)
    return output[key]


def _is_vector(tensor: Tensor) -> bool:
    """Return whether the output of one image may be its logits: (1, num_classes), or with the first axis squeezed."""
    return tensor.numel() > 0 and (tensor.ndim < 2 or (tensor.ndim == 2 and len(tensor) == 1))


def _is_per_image(path: Path, one: Tensor, output: Any) -> bool:
    """Return whether two images' ``output`` has twice as much at ``path`` as ``one`` image's, along the first axis."""
    two = dict(_iter_tensors(output)).get(path)
    return output is None or (two is not None and two.ndim > 0 and len(two) == 2 and two.numel() == 2 * one.numel())


def _name(path: Path) -> str:
    return "output" + "".join(f"[{key!r}]" for key in path)


def _describe(path: Path, tensor: Tensor) -> str:
    return f"{_name(path)} {tuple(tensor.shape)}"


def _describe_keys(output: Any) -> str:
    return ", ".join(repr(key) for key, _ in _items(output)) or f"none ({type(output).__name__})"
