"""LayerCAM over the stages."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ssa_fast.models.layout import find_first_tensor, replace_first_tensor
from ssa_fast.models.trace import hooked_inference
from ssa_fast.ops.resize import minmax, resize

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.quality.sample import Sample


def layer_cam(sample: Sample, classes: Tensor) -> Tensor:
    """Return LayerCAM (Jiang et al., TIP 2021) as (1, K, h, w): the mean of the stages' rescaled maps."""
    sample.run_network()
    info, outputs = sample.network.ssa().info, dict[str, "Tensor"]()

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        torch.set_grad_enabled(True)  # ``hooked_inference`` restores the mode
        tensor = find_first_tensor(output)
        assert tensor is not None
        outputs[name] = tensor if tensor.requires_grad else tensor.detach().requires_grad_(True)
        return replace_first_tensor(output, outputs[name].clone())  # the clone may be modified in place

    hooks = {name: partial(hook, name) for name in info.stages}
    with hooked_inference(sample.network.model, hooks), info.output.follow() as flow:
        logits = info.output.read(sample.network.model(sample.images), 1, flow)
        rows = [
            torch.autograd.grad(logits[0, index], list(outputs.values()), retain_graph=True)
            for index in classes[0].tolist()
        ]
    maps = []
    for at, (name, tensor) in enumerate(outputs.items()):
        view = partial(info.stages[name].layout.view, image_size=sample.size)
        products = [(view(row[at]).relu() * view(tensor.detach())).sum(1) for row in rows]
        cam = minmax(torch.stack(products, 1).relu())
        maps.append(resize(cam, (sample.size[0] // 4, sample.size[1] // 4), align_corners=False))
    return torch.stack(maps).mean(0)
