"""The problems of the grid by name: stages of ResNet-50 and whole networks, and the suites they come in.

resnet50/512/layer1            features ≥ 0 of an input of 512×512, K = 20 classes, one image, float32
resnet50/512/layer1/K1000/B32  other numbers of classes and images
resnet50/512/layer1/signed     normal features; shifted: those under the shifted cosine; centred: the affinity
                               subtracts the mean; nhwc: channels last
resnet50-d8/512/layer4         layers 3 and 4 dilated, so that all end at an eighth of the input
resnet50/512                   the network itself: its forward, and polishing and fusing its four stages
swin_t/512                     another; its stages are signed, as are those of convnext_tiny and efficientnet_b0
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from bench.networks import Network
from bench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

Named: TypeAlias = "Problem | Network"

# Channels and the step between pixels of each stage.
STAGES = {"layer1": (256, 4), "layer2": (512, 8), "layer3": (1024, 16), "layer4": (2048, 32)}
PYRAMID = {"features.1": (96, 4), "features.3": (192, 8), "features.5": (384, 16), "features.7": (768, 32)}
WHOLE = {
    "resnet50": STAGES,
    "swin_t": PYRAMID,
    "convnext_tiny": PYRAMID,
    "efficientnet_b0": {
        "features.2": (24, 4),
        "features.3": (40, 8),
        "features.5": (112, 16),
        "features.8": (1280, 32),
    },
}
NETS = {"resnet50": STAGES, "resnet50-d8": STAGES | {"layer3": (1024, 8), "layer4": (2048, 8)}}
KINDS = {
    "signed": {"values": "randn"},
    "shifted": {"values": "randn", "affinity": "phi=shifted"},
    "centred": {"affinity": "center"},
    "nhwc": {"layout": "nhwc"},
}
SIZES = (224, 512, 1024, 2048, 4096)
EXPECTED = (
    f"<net>/<size>[/K<k>][/B<b>] with a net of {', '.join(WHOLE)}, or <net>/<size>/<stage>[/K<k>][/B<b>]"
    f"[/{'|'.join(KINDS)}] with a net of {', '.join(NETS)} and a stage of {', '.join(STAGES)}; a size divisible by 32"
)
_NAME = re.compile(r"([^/]+)/(\d+)(?:/(layer\d))?(?:/K(\d+))?(?:/B(\d+))?(?:/(signed|shifted|centred|nhwc))?")
LIMITS = {"small": 20.0, "curve": 120.0, "backbone": 120.0, "full": 120.0}


class Label(NamedTuple):
    """What a name says."""

    net: str
    size: int
    stage: str = ""
    K: int = 20
    B: int = 1
    kind: str = ""

    def __str__(self) -> str:
        words = [self.net, str(self.size), self.stage, f"K{self.K}" * (self.K != 20), f"B{self.B}" * (self.B != 1)]
        return "/".join(filter(None, [*words, self.kind]))

    def curve(self) -> Label:
        """The same for every size."""
        return self._replace(size=0)


def parse(name: str) -> Label:
    """A name taken apart.

    Raises:
        ValueError: it names no problem; says what would.
    """
    found = _NAME.fullmatch(name)
    if found:
        net, size, stage, K, B, kind = found.groups()
        label = Label(net, int(size), stage or "", int(K or 20), int(B or 1), kind or "")
        known = label.net in NETS and label.stage in STAGES
        if not label.stage:
            known = label.net in WHOLE and not label.kind
        if known and label.K and label.B and label.size and label.size % 32 == 0:
            return label
    raise ValueError(f"problem: expected {EXPECTED}, got {name!r}; --list prints those of a suite")


def problem(name: str) -> Named:
    """The problem of a name; raises what ``parse`` raises."""
    label = parse(name)
    if not label.stage:
        return Network(label.B, label.K, label.size, label.net)
    C, step = NETS[label.net][label.stage]
    side, end = label.size // step, label.size // NETS[label.net]["layer4"][1]
    given: dict[str, str] = {"dtype": "float32", "values": "relu"} | KINDS.get(label.kind, {})
    return Problem(label.B, label.K, C, side, side, end, end, **given)  # type: ignore[arg-type]


def suite(name: str) -> list[str]:
    """The names of a suite, those of a curve in ascending order of size."""
    return list(dict.fromkeys(str(label) for label in _SUITES[name]()))


def _small() -> Iterator[Label]:
    yield Label("resnet50", 224, "layer1")
    yield Label("resnet50", 512, "layer1")
    yield Label("resnet50", 224, "layer1", kind="signed")
    yield Label("resnet50", 512, "layer1", kind="signed")
    yield Label("resnet50-d8", 224, "layer4", kind="centred")
    yield Label("resnet50", 512, "layer4")
    yield Label("resnet50", 224)
    yield Label("resnet50", 512)


def _curve() -> Iterator[Label]:
    for kind in ("", "signed", "shifted"):
        for size in SIZES:
            yield Label("resnet50", size, "layer1", kind=kind)


def _backbone() -> Iterator[Label]:
    for size in (224, 512, 1024, 4096):
        for K in (20, 1):
            yield Label("resnet50", size, K=K)
    for net in ("swin_t", "convnext_tiny", "efficientnet_b0"):
        yield from (Label(net, size) for size in (512, 1024))


def _full() -> Iterator[Label]:
    yield from _curve()
    sizes = (224, 512, 1024, 4096)
    for stage in STAGES:
        for kind in ("", "signed", "centred"):
            yield from (Label("resnet50", size, stage, kind=kind) for size in sizes)
    for stage in ("layer3", "layer4"):
        for kind in ("", "signed", "centred"):
            yield from (Label("resnet50-d8", size, stage, kind=kind) for size in sizes)
    for stage in STAGES:
        for K, B in ((1, 1), (1000, 1), (20, 32)):
            for kind in ("", "signed"):
                yield from (Label("resnet50", size, stage, K, B, kind) for size in (224, 512))
    yield from (Label("resnet50", 512, stage, kind="nhwc") for stage in STAGES)
    yield from _backbone()


_SUITES = {"small": _small, "curve": _curve, "backbone": _backbone, "full": _full}
SUITES = tuple(_SUITES)
