"""Load classifiers by name and weights, with their preprocessing and the names of their classes."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ssa_fast.models import efficientnet_lite
from ssa_fast.models.checkpoints import mismatch_message, read_state
from ssa_fast.models.class_names import outputs_named, suggest
from ssa_fast.models.class_spec import parse_classes
from ssa_fast.models.input_shape import named_sizes
from ssa_fast.models.scores import Probability, choose_probability, probabilities
from ssa_fast.validation import InputWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import nn

__all__ = ["Classifier", "Size", "build_random", "known_models", "load", "parse_size"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Size = int | tuple[int, int] | None
"""Size at which an image enters the network: None (unchanged), an int (its shorter side), or (height, width)."""


@dataclass(frozen=True)
class Classifier:
    """A classification network in evaluation mode, with its preprocessing and class names.

    Attributes:
        name, weights: The model's name, and its weights: a member of the weights enum, "none" or a file.
        model: The network, on its device.
        categories: One name per output.
        mean, std: Per channel, of images scaled to [0, 1].
        input_size: (height, width) if the network accepts no other, else None.
        probability: Function from logits to probabilities: exclusive classes ("softmax") or independent ("sigmoid"), as
            a single logit always is.
        notes: How the weights' file was read, where that could be meant in two ways; also an ``InputWarning`` each.
    """

    name: str
    weights: str
    model: nn.Module
    categories: tuple[str, ...]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    input_size: tuple[int, int] | None = None
    probability: Probability = "softmax"
    notes: tuple[str, ...] = ()

    def input_shape(self, height: int, width: int, size: Size) -> tuple[int, int]:
        """Return the (height, width) at which an image of height × width pixels enters the network."""
        if self.input_size is not None:
            return self.input_size
        if isinstance(size, tuple):
            return size
        if size is None:
            return height, width
        factor = size / min(height, width)
        return max(1, round(height * factor)), max(1, round(width * factor))

    def preprocess(self, rgb: np.ndarray, size: Size = None) -> Tensor:
        """Convert uint8 RGB (H, W, 3) to a normalised float32 (1, 3, h, w), resized with antialiasing."""
        device = next(self.model.parameters()).device
        pixels = torch.from_numpy(rgb).to(device).permute(2, 0, 1)[None].float().div_(255.0)
        shape = self.input_shape(rgb.shape[0], rgb.shape[1], size)
        if shape != rgb.shape[:2]:
            pixels = interpolate(pixels, shape, mode="bilinear", antialias=True, align_corners=False).clamp_(0.0, 1.0)
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits (..., classes), in the same shape."""
        return probabilities(logits, self.probability)

    def select(self, spec: str) -> str | list[int]:
        """Parse classes for ``SSA`` from text: "predicted", "top5", or names and indices separated by commas.

        Raises:
            ValueError: An index out of range, or a name of no class or of several classes.
        """
        parsed = parse_classes(spec, len(self.categories), self.categories, self.name)
        return spec.strip() if isinstance(parsed, int) else parsed

    def resolve_labels(self, labels: Sequence[str], dataset: Sequence[str]) -> list[int]:
        """Return the sorted output indices of a dataset's class names.

        A name stands for the category of that name or, if ``dataset`` lists as many classes as the network has outputs,
        for its position in that list: the order in which ImageFolder and the VOC codebases number them.

        Raises:
            ValueError: A name stands for no output of this network, or for several.
        """
        positions = {name: i for i, name in enumerate(dataset)} if len(dataset) == len(self.categories) else {}
        indices = []
        for label in labels:
            named = outputs_named(label, self.categories)
            if len(named) > 1:
                raise ValueError(
                    f"classes: {label!r} is the name of several classes of {self.name}, {named}; rename it"
                )
            index = named[0] if named else positions.get(label)
            if index is None:
                raise ValueError(
                    f"classes: {self.name} has no output called {label!r}, and its {len(self.categories)} outputs are "
                    f"not the dataset's {len(dataset)} classes; give --classes instead of the labels"
                )
            indices.append(index)
        return sorted(set(indices))


def parse_size(text: str | None) -> Size:
    """Parse a ``Size`` such as "512" or "480x640"; raise ValueError if ``text`` has another form."""
    if text is None:
        return None
    sides = text.strip().lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"size: expected the shorter side such as 512, or HEIGHTxWIDTH such as 480x640, got {text!r}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def known_models() -> list[str]:
    """Return the names of the networks that ``load`` builds, torchvision's and EfficientNet-Lite, without "demo"."""
    from torchvision import models

    return sorted([*models.list_models(module=models), *efficientnet_lite.SIDES])


def load(
    name: str, weights: str = "DEFAULT", *, device: torch.device | str = "cpu", probability: str | None = None
) -> Classifier:
    """Load the classifier ``name`` with its weights, ready to run on ``device``.

    Args:
        name: A classification model of torchvision, "efficientnet_lite0" (1, 2) of the extra ``photos``, or "demo" for
            the network shipped with this package.
        weights: "DEFAULT" or another member of the model's weights enum (downloaded once, by torchvision; those of
            EfficientNet-Lite come with the extra), "none" for random weights (the same in every run), or a file with a
            state dict, see ``models.checkpoints``.
        device: Device of the network.
        probability: Of the scores: "softmax" or "sigmoid"; None: "sigmoid" for the demo network and a single output.

    Raises:
        ValueError: An unknown model, weights or probability, a file that does not fit the model, or a failed download.
        ModuleNotFoundError: EfficientNet-Lite without the extra ``photos``.
    """
    if name == "demo":
        return _load_demo(weights, device, probability)
    known = known_models()
    if name not in known:
        expected = f"'demo', a model of torchvision or {', '.join(efficientnet_lite.SIDES)}"
        raise ValueError(f"model: expected {expected}, got {name!r}{suggest(name, known)}")
    classifier = _load_lite(name, weights) if name in efficientnet_lite.SIDES else _load_torchvision(name, weights)
    for note in classifier.notes:
        warnings.warn(note, InputWarning, stacklevel=2)
    model = classifier.model.eval().to(device)
    return replace(classifier, probability=choose_probability(probability, model, len(classifier.categories)))


def _load_demo(weights: str, device: torch.device | str, probability: str | None) -> Classifier:
    from ssa_fast.models.demo_net import CLASSES, load_classifier

    if weights.upper() != "DEFAULT":
        raise ValueError(f"weights: expected DEFAULT for the demo network, which is shipped trained, got {weights!r}")
    demo = load_classifier().to(device)
    kind = choose_probability(probability or "sigmoid", demo, len(CLASSES))
    return Classifier("demo", weights, demo, CLASSES, (0.5,) * 3, (0.25,) * 3, probability=kind)


def _load_torchvision(name: str, weights: str) -> Classifier:
    from torchvision import models

    enum = models.get_model_weights(name)
    if weights.upper() in enum.__members__:
        chosen = enum[weights.upper()]
        preset, categories = chosen.transforms(), tuple(chosen.meta["categories"])
        model, mean, std = _download(name, chosen), tuple(preset.mean), tuple(preset.std)
        classifier = Classifier(name, chosen.name, model, categories, mean, std)
    else:
        choices = ["DEFAULT", *(member.name for member in enum)]
        classifier = _random_or_file(name, weights, choices, tuple(enum["DEFAULT"].meta["categories"]))
    model = classifier.model
    fixed_size = (224, 224) if isinstance(model, models.MaxVit) else next(iter(named_sizes(model)), None)
    return replace(classifier, input_size=fixed_size)


def _load_lite(name: str, weights: str) -> Classifier:
    from torchvision.models import ResNet18_Weights

    shipped = weights.upper() == "DEFAULT"
    source = str(efficientnet_lite.weights_file(name)) if shipped else weights
    classifier = _random_or_file(name, source, ["DEFAULT"], tuple(ResNet18_Weights.DEFAULT.meta["categories"]))
    origin = "DEFAULT" if shipped else classifier.weights
    return replace(classifier, weights=origin, mean=efficientnet_lite.MEAN, std=efficientnet_lite.STD)


def _random_or_file(name: str, weights: str, choices: Sequence[str], categories: tuple[str, ...]) -> Classifier:
    """Return the network with random weights or those of a file, and ImageNet's normalisation."""
    if weights.lower() == "none":
        return Classifier(name, "none", build_random(name), categories)
    if not Path(weights).is_file():
        expected = f"{', '.join(choices)}, none or a file that exists"
        raise ValueError(f"weights: expected {expected}, got {weights!r}")
    model, outputs, notes = _from_file(name, Path(weights))
    if outputs != len(categories):
        categories = tuple(f"class {index}" for index in range(outputs))
    return Classifier(name, weights, model, categories, notes=notes)


def build_random(name: str, **options: Any) -> nn.Module:
    """Build a known model with random weights, the same in every run; the random state is restored."""
    from torchvision import models

    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # their own initialisation takes a minute and brings nothing here
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in efficientnet_lite.SIDES:
            return efficientnet_lite.build(name, **options)
        return models.get_model(name, weights=None, **options)


def _download(name: str, weights: Any) -> nn.Module:
    from torchvision import models

    try:
        return models.get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"weights: {weights.name} of {name} could not be downloaded from {weights.url} ({error}); "
            "give a file with --weights FILE, or --weights none for random weights"
        ) from error


def _from_file(name: str, path: Path) -> tuple[nn.Module, int, tuple[str, ...]]:
    """Return the model with the state dict in ``path``, its number of outputs by the file, and notes."""
    model = build_random(name)
    own = model.state_dict().keys()
    others = efficientnet_lite.published_names(own) if name in efficientnet_lite.SIDES else {}
    state, notes = read_state(path, own | others.keys())
    state = {others.get(key, key): value for key, value in state.items()}
    heads = {key for key, value in model.state_dict().items() if value.shape[:1] == (1000,)}
    outputs = {len(state[key]) for key in heads & state.keys() if state[key].ndim}
    num_classes = outputs.pop() if len(outputs) == 1 else 1000
    if num_classes != 1000:
        model = build_random(name, num_classes=num_classes)
    mismatch = mismatch_message(model.state_dict(), state)
    if mismatch:
        beside = "".join(f"; it {note.removeprefix(f'weights: {path} ')}" for note in notes)
        raise ValueError(f"weights: {path} does not fit {name}: {mismatch}{beside}")
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # MNASNet demands its version
    model.load_state_dict(versioned, strict=False)
    return model, num_classes, notes
