"""Repeat the launches of an earlier call, with other tensors of the same kind.

What a call checks, decides and launches follows from shapes, strides, dtypes, devices, alignments and options.
``launch_recorder`` runs a call once and keeps its steps: kernels with the arguments they were launched with, and
functions that run in PyTorch. A replay allocates the outputs and one workspace, puts their addresses into the steps and
runs them: nothing is checked, decided or compiled again. A replay shares no memory with another, so threads and streams
may replay one plan at the same time, and a CUDA graph can capture it.
"""

from __future__ import annotations

import functools
import os
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ssa_fast.kernels.launch import map_nested
from ssa_fast.ops import gpu_info

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

FIRST_TRITON = (3, 6)  # the first one whose compiled kernels are called as ``KernelStep`` does

MAX_PLANS = 1024

PLANS: dict[Hashable, Plan] = {}  # by what a call depends on; see ``signature``
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=PLANS.clear)  # kernels are loaded into a process


class Plan(Protocol):
    """What repeats a call: a ``LaunchPlan``, or on a CPU what was checked and chosen, to be computed again."""

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Repeat the call with other inputs of the same signatures; return its results."""


def signature(tensor: Tensor) -> Hashable:
    """Return what a call depends on, of one of its tensors."""
    return (
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.device,
        tensor.data_ptr() % 16 == 0,  # kernels are compiled for 16-byte loads, or not
    )


def torch_signature(tensor: Tensor) -> Hashable:
    """Return what a call that PyTorch computes depends on, of one of its tensors; transformed ones have no address."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def call_key(cam: Any, feats: Any, options: tuple[Any, ...]) -> Hashable | None:
    """Return what a call depends on: its tensors, as its caller gives them, and its options.

    None if it cannot be replayed: it is neither on a CPU nor where a kernel can run, PyTorch is tracing, an argument is
    not a plain tensor, or its gradient is lost, which every such call notes.
    """
    if torch.compiler.is_compiling() or type(cam) is not Tensor:
        return None
    has_kernels = gpu_info.query(cam.device)[0] is not None
    if not has_kernels and not cam.is_cpu:
        return None
    tensors = inputs_of(cam, feats)
    names = tuple(feats) if type(feats) is dict else ()
    if not all(type(each) is Tensor and each.layout is torch.strided and not each.is_neg() for each in tensors):
        return None
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        return None
    signatures = map(signature if has_kernels else torch_signature, tensors)
    key = (type(feats), names, *signatures, *map(type, options), *options)
    try:
        hash(key)
    except TypeError:  # a list or dict of options
        return None
    return key


def inputs_of(cam: Any, feats: Any) -> list[Any]:
    """Return the CAM and the stages, in order."""
    if type(feats) is dict:
        return [cam, *feats.values()]
    return [cam, *feats] if type(feats) in (list, tuple) else [cam, feats]


def find(key: Hashable | None) -> Plan | None:
    """Return the plan that was made for calls of this key, if any."""
    return None if key is None else PLANS.get(key)


def keep(key: Hashable, plan: Plan) -> None:
    """Keep a plan for later calls of this key."""
    if len(PLANS) >= MAX_PLANS:  # of many sizes, of which few come again
        PLANS.clear()
    PLANS[key] = plan


class View(NamedTuple):
    """A tensor of a call by where it lies: ``offset`` bytes from the start of a source."""

    source: int
    offset: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def within(cls, tensor: Tensor, source: int, of: Tensor) -> View:
        """Return where a view of the tensor ``of``, a call's source of this number, lies."""
        offset = int(tensor.storage_offset() - of.storage_offset())
        return cls(source, offset * tensor.itemsize, tensor.dtype, tensor.shape, tensor.stride())

    def of(self, sources: Sequence[Tensor]) -> Tensor:
        """Return the tensor that takes its place in a replay."""
        source = sources[self.source]
        if (self.offset, self.dtype, self.shape, self.stride) == (0, source.dtype, source.shape, source.stride()):
            return source
        storage = source.untyped_storage()
        start = (source.data_ptr() + self.offset - storage.data_ptr()) // self.dtype.itemsize
        return torch.empty(0, dtype=self.dtype, device=source.device).set_(storage, start, self.shape, self.stride)


class KernelStep(NamedTuple):
    """A launch of a compiled kernel, taken apart; of its arguments, ``pointers`` are (position, source, offset)."""

    run: Callable[..., None]
    grid: tuple[int, ...]
    function: int
    metadata: tuple[Any, ...]
    launch_metadata: Callable[..., Any]
    arguments: list[Any]
    pointers: tuple[tuple[int, int, int], ...]


class TensorStep(NamedTuple):
    """A call of a function of tensors: PyTorch's, or the launch of a kernel whose binary cannot be called.

    ``result`` is the source that it returns, if any.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    result: int | None

    def run(self, sources: list[Tensor], addresses: list[int]) -> None:
        """Call the function with the tensors of a replay."""
        arguments, options = (
            map_nested(View, lambda view: view.of(sources), each) for each in (self.arguments, self.options)
        )
        result = self.function(*arguments, **options)
        if self.result is not None:
            sources[self.result], addresses[self.result] = result, result.data_ptr()


class LaunchPlan(NamedTuple):
    """The steps of a call, to be replayed with other inputs.

    Tensors are found by their source: the inputs, the outputs that the call allocates, its workspace, and what
    functions of PyTorch return, counted in this order.

    Attributes:
        steps: In order.
        outputs: The call's results.
        allocated: Those of them that the call allocates.
        workspace: Bytes of all other tensors that the call allocates.
        results: Number of functions of PyTorch.
        has_binaries: Whether compiled kernels are called, not Triton's JIT.
    """

    steps: list[KernelStep | TensorStep]
    outputs: list[View]
    allocated: list[View]
    workspace: int
    results: int
    has_binaries: bool

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Repeat the call with other inputs of the same signatures; return its results."""
        device = inputs[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self._replay(inputs, device)
        return self._replay(inputs, device)

    def _replay(self, inputs: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        sources = [*inputs]
        for view in self.allocated:
            sources.append(torch.empty(view.shape, dtype=view.dtype, device=device))
        sources.append(torch.empty(self.workspace, dtype=torch.uint8, device=device))
        addresses = [source.data_ptr() for source in sources]
        sources += [sources[-1]] * self.results
        addresses += [0] * self.results
        stream, enter, leave = _launch_context(device) if self.has_binaries else (0, None, None)
        for step in self.steps:
            if isinstance(step, TensorStep):
                step.run(sources, addresses)
                continue
            run, grid, function, metadata, launch_metadata, arguments, pointers = step
            arguments = arguments.copy()
            for position, source, offset in pointers:
                arguments[position] = addresses[source] + offset
            about = launch_metadata(grid, stream, *arguments) if enter else None
            run(*grid, stream, function, metadata, about, enter, leave, *arguments)
        return [view.of(sources) for view in self.outputs]


def jit_reason() -> str:
    """Return why the launches of a replay go through Triton's JIT; empty if its binaries can be called."""
    version = _triton_version()
    if tuple(int(part) for part in version.split(".")[:2]) >= FIRST_TRITON:
        return ""
    first = ".".join(map(str, FIRST_TRITON))
    return f"Triton {version} launches kernels through its JIT only, which costs time; {first} does not"


@functools.cache
def _triton_version() -> str:
    """Return Triton's version without importing it; its distribution has another name on AMD's builds."""
    return metadata.version(metadata.packages_distributions()["triton"][0])


def _launch_context(device: torch.device) -> tuple[int, Any, Any]:
    """Return the device's current stream, and the hooks that a profiler has set for launches, if any."""
    from triton import knobs
    from triton.runtime import driver

    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    hooks = (enter, leave) if enter.calls or leave.calls else (None, None)
    return driver.active.get_current_stream(device.index or 0), *hooks
