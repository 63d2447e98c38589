"""Follow through a forward pass which layers a tensor depends on, and how it was made in the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ssa_fast.models.signs import find_tensors, torch_functions

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

WEIGHTED = torch_functions(
    "linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul __matmul__ "
    "__rmatmul__ mm bmm addmm baddbmm einsum cosine_similarity multi_head_attention_forward "
    "scaled_dot_product_attention"
)
ACTIVATIONS = {
    function: kind
    for kind, names in {
        "softmax": "softmax",
        "log_softmax": "log_softmax",
        "sigmoid": "sigmoid sigmoid_ expit",
        "log_sigmoid": "logsigmoid",
    }.items()
    for function in torch_functions(names)
}
SHAPED = torch_functions(
    "view reshape flatten unflatten squeeze unsqueeze transpose permute movedim t __getitem__ narrow select contiguous "
    "clone float double half bfloat16 to type dropout"
) | {Tensor.T.__get__, Tensor.mT.__get__}  # type: ignore[attr-defined]
MONOTONE = torch_functions("exp log clamp clamp_ clip clip_ clamp_min clamp_max detach")
"""What may follow the activation, class by class, beside changes of the shape: the values before it stay the same."""

AVERAGES = torch_functions("mean adaptive_avg_pool2d adaptive_avg_pool3d")


@dataclass(frozen=True)
class Origin:
    """How a tensor was made.

    Attributes:
        weighted, spatial: The calls of layers with weights that it depends on, one bit each, and those of them that
            returned maps or tokens.
        steps: Calls since the last of them, changes of the shape not counted.
        activation, before: The function that it ends in ("softmax", "sigmoid", …), and its values before it.
        mean_of, dims: If it is a mean: the tensor that was averaged, over all of these axes.
    """

    weighted: int = 0
    spatial: int = 0
    steps: int = 0
    activation: str | None = None
    before: Tensor | None = None
    mean_of: Tensor | None = None
    dims: frozenset[int] = frozenset()


class FlowTracker(TorchFunctionMode):
    """Knows the ``Origin`` of the tensors that PyTorch's functions, called while it is active, returned.

    What they do not call (custom autograd functions, TorchScript) has none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._origins: MutableMapping[Tensor, Origin] = WeakTensorKeyDictionary()
        self._weighted = 0

    def find(self, tensor: Tensor) -> Origin | None:
        """Return how the tensor was made; None if that was not seen."""
        return self._origins.get(tensor)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        # An activation in place overwrites the values before it.
        before = args[0].clone() if func in ACTIVATIONS and name.endswith("_") else None
        result = func(*args, **kwargs)
        written = args[0] if name == "__setitem__" else result
        outputs = [tensor for tensor in find_tensors((written,)) if tensor.is_floating_point()]
        if not outputs:
            return result
        known = [origin for origin in map(self.find, find_tensors((*args, *kwargs.values()))) if origin is not None]
        if known or func in WEIGHTED:  # else a constant, or the image before the first layer
            for tensor in outputs:
                origin = self._make(func, args, kwargs, known, tensor)
                replaced = before is not None and origin.before is not None
                self._origins[tensor] = replace(origin, before=before) if replaced else origin
        return result

    def _make(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], known: list[Origin], output: Tensor
    ) -> Origin:
        first = self._origins.get(args[0]) if args and isinstance(args[0], Tensor) else None
        if first is not None and func in SHAPED:
            before = first.before
            if before is not None:
                before = func(before, *args[1:], **kwargs)
            return replace(first, before=before)
        if first is not None and func in MONOTONE:
            return replace(first, steps=first.steps + 1, mean_of=None)
        weighted = spatial = 0
        for origin in known:
            weighted |= origin.weighted
            spatial |= origin.spatial
        if func in WEIGHTED:
            bit, self._weighted = 1 << self._weighted, self._weighted + 1
            return Origin(weighted | bit, spatial | bit if _is_spatial(output) else spatial)
        made = Origin(weighted, spatial, 1 + max(origin.steps for origin in known))
        if func in ACTIVATIONS and not _is_spatial(output):  # not the maps of gates and attention, which are large
            return replace(made, activation=ACTIVATIONS[func], before=args[0])
        if func in AVERAGES and args and isinstance(args[0], Tensor):
            return replace(made, mean_of=args[0], dims=_averaged_axes(func, args, kwargs))
        return made


def _is_spatial(tensor: Tensor) -> bool:
    """Return whether a tensor (B, …) has more than one axis longer than 1 beside the batch's."""
    return sum(side > 1 for side in tensor.shape[1:]) > 1


def _averaged_axes(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> frozenset[int]:
    """Return the axes over all of which ``mean`` or adaptive pooling averages, counted from the first."""
    ndim = args[0].ndim
    if func.__name__ == "mean":
        dims = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        dims = (dims,) if isinstance(dims, int) else tuple(dims or ())
        return frozenset(dim % ndim for dim in dims if isinstance(dim, int))
    size = args[1] if len(args) > 1 else kwargs.get("output_size")
    pooled = 3 if func.__name__ == "adaptive_avg_pool3d" else 2
    return frozenset(range(ndim - pooled, ndim)) if size in (1, (1,) * pooled, [1] * pooled) else frozenset()
