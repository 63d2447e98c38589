"""Run SSA on the classifiers of torchvision, timm or transformers with random weights, without a network.

``python -m tests.sweep_models [NAME ...] [--library torchvision|timm|transformers]`` describes stages, sizes, signs and
seed, and polishes two seeds in every stage by prototypes. Torchvision's networks are printed as ``ssa-fast models``
prints them; of timm and transformers one small network of each family goes into a Markdown table, as in
docs/models.md. Exit code 0 if SSA works on all but the unsuitable ones, 1 if it fails on some, 2 for wrong usage.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import platform
import sys
import time
import warnings
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
import torchvision
import typer

from ssa_fast.api import polish
from ssa_fast.cli import console, models
from ssa_fast.models import describe, inspect_model
from ssa_fast.models.stage_affinity import choose_affinities
from ssa_fast.models.trace import make_trace_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from ssa_fast.models import ModelDescription

# One small network of each module of timm.
TIMM = """\
beit_base_patch16_224 halonet_h1 mobileone_s1 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 test_convnext
cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121
dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 mnasnet_small efficientvim_m1 efficientvit_b0
efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_b
hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4
lcnetv2_small levit_128s lowformer_b0 test_mambaout test_coatnet poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050
mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small
test_nfnet pit_ti_224 pnasnet5large pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d
resnet10t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050
swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224
tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny test_vit vit_tiny_r_s16_p8_224 test_vit_relpos
samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p
xcit_nano_12_p16_224
"""
# Plain transformers are made small; the others' configurations are small by themselves.
SMALL = {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 128}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "mobilevitv2": {"initializer_range": 0.1},  # else the features of random weights underflow to zero
    "efficientnet": {
        "initializer_range": 0.1,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "image_size": 224,
        "hidden_dim": 1280,
    },
}
UNSUITABLE = {
    "dinat": "needs the package natten",
    "imagegpt": "takes tokens of colours, no images",
    "shieldgemma2": "a language model of 2.7 billion parameters",
    "siglip2": "takes patches and a mask, no images",
}
SECONDS = {"timm": 300, "transformers": 60}  # on one core, printed beforehand


class Row(NamedTuple):
    """One network of the table: its description, or why it has none."""

    name: str
    description: ModelDescription | None
    reason: str


def sweep(names: Sequence[str]) -> Iterator[models.NetworkRow]:
    """Yield a row per torchvision network as soon as it is done; only one network is in memory at a time."""
    return (models.describe_network(name, check_polishing) for name in models.select_networks(names))


def light_half() -> list[str]:
    """Return the half of torchvision's classifiers with fewer parameters, by the weights' metadata."""
    known = torchvision.models.list_models(module=torchvision.models)
    known.sort(key=lambda name: torchvision.models.get_model_weights(name)["DEFAULT"].meta["num_params"])
    return sorted(known[: len(known) // 2])


def check_polishing(model: nn.Module) -> None:
    """Polish two seeds in every stage by SSA's own affinities.

    Raises:
        ValueError: A stage cannot be polished by prototypes, in time linear in the pixels.
        ArithmeticError: A map is not finite, or negative though no affinity is.
    """
    info = inspect_model(model)
    extracted = info.forward(model, make_trace_image(model, info.trace_size, info.in_channels))
    seeds = info.seed_maps(model, extracted, torch.tensor([[0, info.num_classes - 1]]))
    maps = {"seed": (seeds, 0.0)}
    for name, affinity in choose_affinities("auto", info.signs).items():
        polished = polish(seeds, extracted.maps[name], affinity=affinity, method="prototypes")
        maps[name] = polished, 0.0 if affinity.shift >= 1 else -torch.inf
    for name, (each, low) in maps.items():
        if not bool((each.isfinite() & (each >= low)).all()):
            raise ArithmeticError(f"{name}: expected finite numbers >= {low:g}, got {each.amin()} to {each.amax()}")


def networks(library: Literal["timm", "transformers"]) -> dict[str, Callable[[], nn.Module]]:
    """Return a function per family that builds a small network with random weights."""
    package = importlib.import_module(library)
    if library == "timm":
        return {name: lambda name=name: package.create_model(name, pretrained=False) for name in TIMM.split()}  # type: ignore[misc]
    package.logging.set_verbosity_error()
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    classes = auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return {kind: lambda kind=kind: _from_configuration(package, kind, classes[kind]) for kind in classes}  # type: ignore[misc]


def _from_configuration(package: Any, kind: str, classes: str | Sequence[str]) -> nn.Module:
    config = package.CONFIG_MAPPING[kind](num_labels=10)
    part = getattr(config, "vision_config", config)
    plain = not any(hasattr(part, name) for name in ("depths", "hidden_sizes", "depth"))
    for name, value in {**(SMALL if plain else {}), **TRANSFORMERS.get(kind, {})}.items():
        if hasattr(part, name):
            setattr(part, name, value)
    model: nn.Module = getattr(package, classes if isinstance(classes, str) else classes[0])(config)
    return model


def describe_network(name: str, build: Callable[[], nn.Module]) -> Row:
    """Build one network and describe it; whatever it raises becomes the row's reason."""
    gc.collect()
    if name in UNSUITABLE:
        return Row(name, None, UNSUITABLE[name])
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            model = build().eval()
            check_polishing(model)
            return Row(name, describe(model), "")
    except Exception as error:
        return Row(name, None, f"{type(error).__name__}: {error}".split("\n")[0])


def markdown(row: Row) -> str:
    """Return a row of the table."""
    if row.description is None:
        return f"| {row.name} | – | – | – | {row.reason} |"
    found = row.description
    stages = ", ".join(f"`{each.name}` {'×'.join(map(str, each.shape))}" for each in found.stages)
    signs = "".join("+" if each.sign == "non-negative" else "±" for each in found.stages)
    return f"| {row.name} | {stages} | {signs} | {found.seed_kind}, `{found.seed_layer}` | {' '.join(found.notes)} |"


def list_families(library: Literal["timm", "transformers"], names: Sequence[str] | None = None) -> None:
    """Print the table, progress on stderr; exit with 1 if a network failed."""
    known = networks(library)
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"names: expected families of {library} such as {next(iter(known))!r}, got {unknown[0]!r}")
    chosen = list(names or known)
    seconds = SECONDS[library] * len(chosen) / len(known)
    screen = console.err()
    screen.print(f"{len(chosen)} networks of {library}, about {seconds:.0f} s on one core")
    typer.echo("| network | stages, C×h×w | signs | seed | notes |\n|---|---|---|---|---|")
    failed, start = 0, time.perf_counter()
    for index, name in enumerate(chosen):
        row = describe_network(name, known[name])
        failed += row.description is None and name not in UNSUITABLE
        typer.echo(markdown(row))
        screen.print(f"{index + 1} of {len(chosen)}: {name}, {time.perf_counter() - start:.0f} s")
    version = importlib.import_module(library).__version__
    typer.echo(f"\n{library} {version}, torch {torch.__version__}, Python {platform.python_version()}")
    raise typer.Exit(int(failed > 0))


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME")] = None,
    library: Annotated[str, typer.Option(help="torchvision, timm or transformers.")] = "torchvision",
    everything: Annotated[
        bool, typer.Option("--all", help="Every model of torchvision and of the extra photos.")
    ] = False,
) -> None:
    """Run SSA on networks with random weights; by default on torchvision's half with fewer parameters."""
    with console.usage_errors(debug=False):
        if library == "timm" or library == "transformers":
            list_families(library, names)
        if library != "torchvision":
            raise ValueError(f"library: expected torchvision, timm or transformers, got {library!r}")
        chosen = models.select_networks(names, everything=everything) if names or everything else light_half()
        models.list_networks(chosen, check_polishing)


if __name__ == "__main__":
    sys.exit(typer.run(main))
