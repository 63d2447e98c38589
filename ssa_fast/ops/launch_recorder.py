"""Record the launches of a call, and make the plan that repeats them; see ``launch_plan``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ssa_fast.kernels.launch import Call, Launch, Recording, map_nested
from ssa_fast.ops.launch_plan import KernelStep, LaunchPlan, TensorStep, View, jit_reason, keep

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import torch
    from torch import Tensor

ALIGNMENT = 256  # bytes: at least that of GPUs' allocators, and more than kernels are compiled for


def record(key: Hashable, inputs: Sequence[Tensor], function: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Call ``function``, which computes tensors from ``inputs``; keep the plan that repeats it."""
    results, plan = Recorder(inputs).run(function)
    if plan is not None:
        keep(key, plan)
    return results


@dataclass(eq=False)
class Region:
    """Memory of a recorded call: its ``start`` and size, the steps that use it, and where a replay has it."""

    start: int
    nbytes: int
    first: int
    last: int
    source: int | None = None
    offset: int = 0  # in its source


class Place(NamedTuple):
    """A tensor of a recorded call, ``offset`` bytes from the start of its region."""

    region: Region
    offset: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    def view(self) -> View:
        """Return where a replay has it."""
        assert self.region.source is not None
        return View(self.region.source, self.region.offset + self.offset, self.dtype, self.shape, self.stride)


class Recorder:
    """Runs a call once and makes the plan that repeats it.

    Tensors are told apart by the memory of their storage. It may be that of a tensor that the call has freed.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = inputs
        self.found: dict[tuple[int, int], Region] = {}
        self.scratch: list[Region] = []
        self.results: list[Tensor] = []  # kept, so that nothing else comes to lie there
        for number, tensor in enumerate(inputs):
            self.found[_storage(tensor)] = Region(tensor.data_ptr(), tensor.nbytes, 0, 0, source=number)
        self.ambiguous = len(self.found) < len(inputs)  # a view of inputs that share memory could be of either

    def run(self, function: Callable[[], list[Tensor]]) -> tuple[list[Tensor], LaunchPlan | None]:
        """Call ``function``; return its results, and the plan that repeats it.

        The plan is None if there is nothing to gain, because no kernel was launched, or if PyTorch computed something
        outside of ``kernels.launch.call``.
        """
        with Recording(self) as recording:
            outputs = function()
        launched = any(isinstance(step, Launch) for step in recording.steps)
        if self.ambiguous or recording.missed or not launched:
            return outputs, None
        return outputs, self._plan(recording.steps, outputs)

    def allocate(self, tensor: Tensor) -> None:
        """Forget what lay where a new tensor lies."""
        self.found.pop(_storage(tensor), None)

    def locate(self, tensor: Tensor, step: int) -> Place:
        """Return the place of an argument of a step."""
        region = self.found.get(_storage(tensor))
        if region is None:
            region = Region(*_storage(tensor), step, step)
            self.found[_storage(tensor)] = region
            self.scratch.append(region)
        region.last = step
        return Place(region, tensor.data_ptr() - region.start, tensor.dtype, tensor.shape, tensor.stride())

    def locate_result(self, tensor: Tensor, step: int) -> Place:
        """Return the place of what PyTorch returned in a step: a view of an argument, or memory of its own."""
        known = self.found.get(_storage(tensor))
        if known is None or known.last < step:
            self.found[_storage(tensor)] = Region(*_storage(tensor), step, step)
            self.results.append(tensor)
        return self.locate(tensor, step)

    def _plan(self, steps: Sequence[Launch | Call], outputs: Sequence[Tensor]) -> LaunchPlan | None:
        places = [self.locate(tensor, len(steps)) for tensor in outputs]
        allocated: list[Place] = []
        for tensor, place in zip(outputs, places, strict=True):
            if place.region.source is None and place.region in self.scratch:
                if place.offset or not tensor.is_contiguous() or tensor.nbytes != place.region.nbytes:
                    return None  # a result that is part of something larger
                place.region.source = len(self.inputs) + len(allocated)
                allocated.append(place)
        workspace = len(self.inputs) + len(allocated)
        calls = [step for step in steps if isinstance(step, Call)]
        for number, step in enumerate(calls, workspace + 1):
            if step.result.region.source is None:  # else it is a view of an argument
                step.result.region.source = number
        scratch = [region for region in self.scratch if region.source is None]
        for region in scratch:
            region.source = workspace
        size = lay_out(scratch)
        results = iter(range(workspace + 1, workspace + 1 + len(calls)))
        numbered = [
            _kernel_step(step) if isinstance(step, Launch) else _call_step(step, next(results)) for step in steps
        ]
        return LaunchPlan(
            steps=numbered,
            outputs=[place.view() for place in places],
            allocated=[place.view() for place in allocated],
            workspace=size,
            results=len(calls),
            has_binaries=any(isinstance(step, KernelStep) for step in numbered),
        )


def lay_out(regions: Sequence[Region]) -> int:
    """Give each region an offset in one workspace, and return its size; regions of different steps may overlap."""
    placed: list[Region] = []
    for region in sorted(regions, key=lambda each: -each.nbytes):
        for other in sorted(placed, key=lambda each: each.offset):
            if other.last < region.first or region.last < other.first:
                continue
            if region.offset + region.nbytes <= other.offset:
                break
            region.offset = max(region.offset, -(-(other.offset + other.nbytes) // ALIGNMENT) * ALIGNMENT)
        placed.append(region)
    return max((region.offset + region.nbytes for region in placed), default=0)


def _kernel_step(step: Launch) -> KernelStep | TensorStep:
    if step.compiled is None or jit_reason():  # interpreted, or launched through the JIT
        return TensorStep(step.kernel[step.grid], (), map_nested(Place, Place.view, step.arguments), None)
    arguments = [step.arguments[name] for name in step.kernel.arg_names]
    pointers = []
    for position, argument in enumerate(arguments):
        if isinstance(argument, Place):
            view = argument.view()
            pointers.append((position, view.source, view.offset))
            arguments[position] = None
    compiled = step.compiled
    return KernelStep(
        compiled.run,
        (*step.grid, 1, 1)[:3],
        compiled.function,
        compiled.packed_metadata,
        compiled.launch_metadata,
        arguments,
        tuple(pointers),
    )


def _call_step(step: Call, result: int) -> TensorStep:
    arguments, options = (map_nested(Place, Place.view, each) for each in (step.arguments, step.options))
    return TensorStep(step.function, arguments, options, result)


def _storage(tensor: Tensor) -> tuple[int, int]:
    """Return the start and the size of a tensor's memory."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
