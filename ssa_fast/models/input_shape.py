"""Find the shape (C, H, W) of the images that a network takes: as told, as it names it, as its forward pass shows.

That of the volumes that a network of 3-D convolutions takes is (C, D, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch.nn import Conv2d, Conv3d

from ssa_fast.models.trace import ForwardError, trace_model
from ssa_fast.validation import check_size

if TYPE_CHECKING:
    from torch import nn

    from ssa_fast.layouts import Size
    from ssa_fast.models.outputs import Logits
    from ssa_fast.models.trace import ForwardTrace

InputShape: TypeAlias = "int | Sequence[int] | Mapping[str, Any] | None"

SIZES = (224, 256, 128, 64, 32)  # sides tried, in this order, after those that the network names
VOLUMES = ((16, 112, 112), (16, 224, 224), (96, 96, 96), (64, 64, 64), (32, 32, 32))  # clips first: torchvision's


class AskedShape(NamedTuple):
    """What the caller said about images: channels, (H, W) or (D, H, W), or None for what was left open."""

    channels: int | None = None
    size: Size | None = None


def parse_input_shape(value: InputShape) -> AskedShape:
    """Read ``input_shape``: a side, (H, W), (C, H, W), (C, D, H, W), or a preprocessor's sizes; else TypeError.

    A preprocessor is Hugging Face's image processor, one of its ``size`` mappings, or timm's data configuration.
    """
    if value is None:
        return AskedShape()
    given: Any = _preprocessor_size(value)
    if isinstance(given, int) and not isinstance(given, bool):
        given = (given, given)
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) not in (2, 3, 4):
        raise TypeError(
            f"input_shape: expected (C, H, W), (H, W) or a side, or (C, D, H, W) of volumes, got {value!r}; pass ints"
        )
    dims = 3 if len(given) == 4 else 2
    size = check_size("input_shape", tuple(given[-dims:]), dims)
    return AskedShape(check_size("input_shape", (given[0], 1))[0] if len(given) > 2 else None, size)


def trace_sample(model: nn.Module, asked: AskedShape, logits: Logits = None) -> ForwardTrace:
    """Trace ``model`` on the first image that it takes: as asked, else in the order of what speaks for a shape.

    Of the channels, the first convolution that is called has the last word; which it is, a forward that fails tells.
    A network whose convolutions are all 3-D is taken for one of volumes.

    Raises:
        ForwardError: No forward pass succeeded; the first failure at the number of channels that went furthest.
        TypeError: An image was asked for of a network of volumes, or a volume of one of images.
    """
    dims = {2 if isinstance(module, Conv2d) else 3 for module in model.modules() if isinstance(module, Conv2d | Conv3d)}
    if asked.size and len(dims) == 1 and dims != {len(asked.size)}:
        shape = "(C, D, H, W)" if dims == {3} else "(C, H, W), (H, W) or a side"
        raise TypeError(f"input_shape: expected {shape}, as all convolutions are {max(dims)}-D, got sides {asked.size}")
    sizes: list[Size] = [*VOLUMES] if dims == {3} else [*named_sizes(model), *((s, s) for s in SIZES)]
    sizes = [asked.size] if asked.size else list(dict.fromkeys(sizes))
    queue = [asked.channels] if asked.channels else named_channels(model)
    failed: ForwardError | None = None
    for size in sizes:
        tried: list[int] = []
        while (channels := next((count for count in queue if count not in tried), None)) is not None:
            tried.append(channels)
            try:
                return trace_model(model, size, channels, logits)
            except ForwardError as error:
                if failed is None or (error.passed and not failed.passed):
                    failed = error
                if error.passed:
                    queue = [channels]
                elif error.takes is not None and asked.channels is None:
                    queue.insert(0, error.takes)
    assert failed is not None
    raise failed


def _preprocessor_size(value: Any) -> Any:
    """Return the sizes that a preprocessor leads to, or ``value`` if it is none."""
    if hasattr(value, "crop_size") or hasattr(value, "size"):
        value = (_get(value, "do_center_crop") and _get(value, "crop_size")) or _get(value, "size")
    if not isinstance(value, Mapping) and not hasattr(value, "height"):
        return value
    return _get(value, "input_size") or _get(value, "shortest_edge") or (_get(value, "height"), _get(value, "width"))


def named_channels(model: nn.Module) -> list[int]:
    """List the channels that a network names, most evident first: configuration, convolutions, else RGB.

    Modules are listed in the order of their registration, which may put the head first, so a convolution of at most 4
    channels goes before the first.
    """
    configured = [_get(config, "num_channels") for config in _configurations(model)]
    configured += [shape[0] for shape in (_get(config, "input_size") for config in _configurations(model)) if shape]
    inputs = [module.in_channels for module in model.modules() if isinstance(module, Conv2d | Conv3d)]
    found = [*configured, *[few for few in inputs if few <= 4][:1], *inputs[:1], 3, 1]
    return list(dict.fromkeys(count for count in found if isinstance(count, int) and count > 0))


def named_sizes(model: nn.Module) -> list[tuple[int, int]]:
    """List the image sizes (H, W) that a network names, most evident first: its configuration, then its modules."""
    configurations = _configurations(model)
    values: list[Any] = [_get(config, "image_size") for config in configurations]
    for module in model.modules():
        values += [getattr(module, name, None) for name in ("image_size", "img_size")]
    values += [(_get(config, "input_size") or ())[-2:] for config in configurations]  # of the weights, timm's
    return list(dict.fromkeys(size for size in map(_as_size, values) if size is not None))


def _configurations(model: nn.Module) -> list[Any]:
    """List what Hugging Face (``config``, first its vision part) and timm (``pretrained_cfg``) keep on a network.

    A network inside a wrapper counts too.
    """
    names = ("config", "pretrained_cfg", "default_cfg")
    configs = [getattr(module, name, None) for module in model.modules() for name in names]
    unique = {id(config): config for config in configs if config is not None}.values()
    return [part for config in unique for part in (_get(config, "vision_config"), config) if part is not None]


def _get(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _as_size(value: Any) -> tuple[int, int] | None:
    """Return (H, W) of a side or a pair of more than one pixel; None for anything else."""
    sides = (value, value) if isinstance(value, int) else value
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 2:
        return None
    if not all(isinstance(side, int) and side > 1 for side in sides):
        return None
    return sides[0], sides[1]
