"""Find out whether what a network returns for one image depends on the others in its batch, and where that begins.

An image is run alone and beside another. What differs by more than rounding depends on the batch: BatchNorm without
running statistics, a mean over the batch in ``forward``, contrastive normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ssa_fast.models.trace import ForwardTrace, make_trace_image, pair_images, restored, sample_elements
from ssa_fast.models.watch import Verb, describe_place, watch_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssa_fast.models.outputs import LogitsRef

TOLERANCE = 1e-2  # of the largest element: rounding with another batch size, TF32 included, stays below
SIDE = 64  # pixels to whose multiples the halved sample image is rounded, and its least side


class _Event(NamedTuple):
    """What a module reads or returns: its shape, and some elements of the first image's part."""

    name: str
    verb: Verb
    shape: torch.Size
    sample: Tensor


class _Run(NamedTuple):
    events: list[_Event]
    logits: Tensor


@dataclass(frozen=True)
class BatchTrial:
    """What a second image beside the first changes: notes on it, and whether the network takes one image only."""

    notes: tuple[str, ...] = ()
    takes_one: bool = False


def try_batch(model: nn.Module, trace: ForwardTrace, stages: Sequence[str]) -> BatchTrial:
    """Run an image alone and beside another: at half the sample image's size, or at its own if the network refuses."""
    logits = trace.output
    try:
        image = make_trace_image(model, tuple(map(_halve, trace.image_size)), trace.channels)
        alone = _run(model, image, logits)
    except Exception:  # a network may refuse a size in any way
        image, alone = make_trace_image(model, trace.image_size, trace.channels), _Run([], trace.logits[0])
    try:
        beside = _run(model, pair_images(image), logits, alone.events)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        return BatchTrial((f"model: it takes one image per call; two together fail ({reason})",), takes_one=True)
    if not _differ(alone, beside, stages):
        return BatchTrial()
    if not alone.events:  # only the logits are known of the sample image alone
        alone = _run(model, image, logits)
        beside = _run(model, pair_images(image), logits, alone.events)
    again = _run(model, image, logits)
    if _differ(alone, again, stages):
        place = _describe_place(model, alone, again)
        return BatchTrial((f"model: it is random in evaluation mode: two runs of one image differ, first {place}",))
    place = _describe_place(model, alone, beside)
    note = (
        f"model: its result for an image depends on the other images of the batch, first {place}; "
        "pass images one by one for results of their own"
    )
    return BatchTrial((note,))


def _halve(side: int) -> int:
    return min(side, max(SIDE, side // 2 // SIDE * SIDE))


def _run(model: nn.Module, images: Tensor, logits: LogitsRef, alone: Sequence[_Event] = ()) -> _Run:
    """Run images (B, C, H, W); ``alone`` are the events of the first of them in a batch of its own."""
    events: list[_Event] = []

    def record(name: str, verb: Verb, tensor: Tensor) -> None:
        part: Tensor | None = tensor
        if alone:
            part = _first_part(tensor, alone[len(events)].shape) if len(events) < len(alone) else None
        sample = tensor.new_zeros(0) if part is None else sample_elements(part).clone()
        events.append(_Event(name, verb, tensor.shape, sample))

    with restored(model), watch_tensors(model, record), logits.follow() as flow:
        output = model(images)
        values = images.new_empty(1, 0) if logits.missing else logits.read(output, len(images), flow)
    return _Run(events, values[0])


def _first_part(tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """Return the first image's part of two images' tensor, by the one axis that is twice as long as in ``shape``."""
    if tensor.shape == shape:
        return tensor
    if tensor.ndim != len(shape):
        return None
    longer = [axis for axis in range(tensor.ndim) if tensor.shape[axis] != shape[axis]]
    if len(longer) != 1 or tensor.shape[longer[0]] != 2 * shape[longer[0]]:
        return None
    return tensor.narrow(longer[0], 0, shape[longer[0]])


def _differ(a: _Run, b: _Run, stages: Sequence[str]) -> bool:
    """Return whether the logits or the stages of two runs differ."""
    differing = (
        x.name for x, y in zip(a.events, b.events, strict=False) if x.verb == "returns" and _event_differs(x, y)
    )
    return _tensors_differ(a.logits, b.logits) or any(name in stages for name in differing)


def _event_differs(a: _Event, b: _Event) -> bool:
    if (a.name, a.verb) != (b.name, b.verb):
        return True
    return b.sample.numel() > 0 and _tensors_differ(a.sample, b.sample)


def _tensors_differ(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.numel() == 0:
        return a.shape != b.shape
    tolerance = max(TOLERANCE, 16 * torch.finfo(a.dtype).eps)
    a, b = a.detach().float(), b.detach().float()
    scale = float(a.nan_to_num(0, 0, 0).abs().max())
    return not torch.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True)


def _describe_place(model: nn.Module, a: _Run, b: _Run) -> str:
    """Return where two runs differ first."""
    for x, y in zip(a.events, b.events, strict=False):
        if _event_differs(x, y):
            place, module = describe_place(model, x.name, x.verb), model.get_submodule(x.name)
            without = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
            return f"{place}, which has no running statistics" if without and x.verb == "returns" else place
    return "after its last layer, in forward itself"
