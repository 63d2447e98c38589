"""The ``ssa-fast run`` line and the Python lines that make a view's CAMs again."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ssa_fast.explore.images import Entry
    from ssa_fast.explore.networks import Network
    from ssa_fast.explore.settings import ViewSettings
    from ssa_fast.models.zoo import Size

OUT = "results"


def command(settings: ViewSettings, entry: Entry, network: Network, size: Size, device: torch.device) -> str:
    """Return the command whose CAM file has the view's CAMs, in float16.

    ``size`` is that at which the image enters the network.
    """
    words = ["ssa-fast", "run", entry.shown_path, "--model", network.listed.name]
    if network.listed.weights != "DEFAULT":
        words += ["--weights", network.listed.weights]
    if size is not None:
        words += ["--size", str(size) if isinstance(size, int) else "{}x{}".format(*size)]
    words += ["--classes", ",".join(map(str, settings.classes))]
    if settings.seed != "auto":
        words += ["--seed", settings.seed]
    if settings.stages is not None:
        words += ["--stages", ",".join(settings.stages)]
    if settings.affinity != "auto":
        words += ["--affinity", settings.affinity]
    if settings.fuse != "mean":
        words += ["--fuse", settings.fuse]
    if settings.weights is not None:
        words += ["--stage-weights", ",".join(f"{weight:g}" for weight in settings.weights)]
    if settings.prior is not None:
        words += ["--prior", settings.prior]
    if device.type != "cpu":
        words += ["--device", str(device), "--precision", "float32"]
    return shlex.join([*words, "--out", OUT])


def python(
    settings: ViewSettings, entry: Entry, network: Network, size: Size, device: torch.device, shown: tuple[int, int]
) -> str:
    """Return the lines after which ``cams`` (1, K, H, W) are the view's CAMs at the size that it shows."""
    loaded = [repr(network.listed.name)]
    if network.listed.weights != "DEFAULT":
        loaded.append(repr(network.listed.weights))
    if device.type != "cpu":
        loaded.append(f"device={str(device)!r}")
    options = ["net.model", "names=net.categories", "probability=net.probability", 'size="stage"']
    if network.classifier.input_size is not None:
        options.append("input_shape=net.input_size")
    if settings.stages is not None:
        options.append(f"stages={settings.stages!r}")
    if settings.seed != "auto":
        options.append(f"seed={settings.seed!r}")
    if settings.affinity != "auto":
        options.append(f"affinity=Affinity.parse({settings.affinity!r})")
    if settings.fuse != "mean":
        options.append(f"fuse={settings.fuse!r}")
    if settings.weights is not None:
        options.append(f"weights={settings.weights!r}")
    if settings.prior is not None:
        options.append(f"prior={settings.prior!r}")
    names = "SSA" if settings.affinity == "auto" else "SSA, Affinity"
    lines = "".join(f"    {option},\n" for option in options)
    images = "net.preprocess(rgb)" if size is None else f"net.preprocess(rgb, {size!r})"
    return f"""\
from torch.nn.functional import interpolate

from ssa_fast import {names}
from ssa_fast.io.images import read_image
from ssa_fast.models import zoo

rgb = read_image({entry.shown_path!r}).rgb
net = zoo.load({", ".join(loaded)})
ssa = SSA(
{lines})
result = ssa({images}, {settings.classes!r})
cams = interpolate(result.cams, {shown!r}, mode="bilinear").clamp(0, 1)
"""
