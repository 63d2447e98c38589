"""Names of a network's outputs: where a model carries them, and which output a name stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import nn

NamesLike: TypeAlias = "Sequence[str] | Mapping[int, str] | Mapping[str, str] | None"

ATTRIBUTES = ("names", "class_names", "categories", "classes", "CLASSES")  # where networks keep a name per output


def check_names(names: NamesLike, num_classes: int) -> tuple[str, ...]:
    """Return one name per output of a model, given in order or by index; () for None.

    Raises:
        TypeError: ``names`` is neither a sequence of strings nor a mapping from index to string.
        ValueError: There are more or fewer names than outputs.
    """
    if names is None:
        return ()
    found = _read(names)
    if found is None:
        raise TypeError(
            f"names: expected a name per output of the model, in order or as a dict by index, got {names!r:.80}; "
            'pass a list such as weights.meta["categories"]'
        )
    if num_classes is None or len(found) != num_classes:
        outputs = "a model without logits" if num_classes is None else f"{num_classes}, one per output of the model"
        raise ValueError(
            f"names: expected {outputs}, got {len(found)}; leave out or add classes, in the outputs' order"
        )
    return found


def find_names(model: nn.Module, num_classes: int) -> tuple[tuple[str, ...], str | None]:
    """Return the names that a model carries, one per output, and a note if they are a guess; () without names.

    Known are Hugging Face's ``config.id2label``, timm's ``pretrained_cfg``, and lists called ``names``, ``classes`` and
    the like, on the model or on one that it wraps. timm and torchvision networks whose number of outputs is that of an
    ImageNet are taken for trained on it, which is the guess.
    """
    if not num_classes:
        return (), None
    wrapped = [model, *model.children()]
    for module in wrapped:
        config, meta = getattr(module, "config", None), getattr(module, "dataset_meta", None)
        carried = [getattr(config, "id2label", None), *(getattr(module, name, None) for name in ATTRIBUTES)]
        carried.append(meta.get("classes") if isinstance(meta, Mapping) else None)
        found = next((names for names in map(_read, carried) if names and len(names) == num_classes), None)
        if found:
            return found, None
    for module in wrapped:
        names, source = _timm_names(module, num_classes) or _torchvision_names(module, num_classes) or ((), None)
        if names:
            return names, source
    return (), None


def index_of(text: str, names: Sequence[str], num_classes: int, owner: str = "the model") -> int:
    """Return the output that a name or a number in ``text`` stands for.

    A name counts whatever its case, "_" counts as a space, and of "tabby, tabby cat" each part is a name.

    Raises:
        ValueError: A number out of range, a name of no output or of several, or a model without names.
    """
    matches = outputs_named(text, names)
    if re.fullmatch(r"[+-]?\d+", text):
        index = int(text)
        if matches and matches != [index]:
            raise ValueError(
                f"classes: {text!r} is an index and the name of class {matches[0]}; pass the index as a number"
            )
        if not 0 <= index < num_classes:
            raise ValueError(f"classes: expected an index from 0 to {num_classes - 1} for {owner}, got {text}")
        return index
    if not names:
        raise ValueError(
            f"classes: {owner} has no names for its outputs, got {text!r}; pass indices, or names=[...] to SSA"
        )
    if len(matches) > 1:
        raise ValueError(f"classes: {text!r} is the name of several classes; give one of the indices {matches}")
    if not matches:
        known = [part.strip() for name in names for part in name.split(",")]
        raise ValueError(f"classes: {owner} has no class {text!r}{suggest(text, known)}")
    return matches[0]


def suggest(text: str, known: Sequence[str]) -> str:
    """Return "; did you mean ...?" with up to three ``known`` names close to ``text``, or an empty string."""
    folded = {name.casefold(): name for name in known}
    text = text.casefold()
    close = [name for name in folded if text in name.split()] + get_close_matches(text, folded, n=3)
    close += [name for name in folded if text in name]
    best = list(dict.fromkeys(close))[:3]
    return f"; did you mean {' or '.join(repr(folded[name]) for name in best)}?" if best else ""


def outputs_named(text: str, names: Sequence[str]) -> list[int]:
    """Return the outputs with the name ``text``: exactly, else in another spelling, else as one of several names."""
    exact = [index for index, name in enumerate(names) if name == text]
    spelt = [index for index, name in enumerate(names) if _spelling(name) == _spelling(text)]
    parts = (name.split(",") for name in names)
    return exact or spelt or [i for i, each in enumerate(parts) if _spelling(text) in map(_spelling, each)]


def _spelling(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _read(names: Any) -> tuple[str, ...] | None:
    """Return names given in order or by index, None for anything else."""
    if isinstance(names, Mapping):
        by_index = {int(key): name for key, name in names.items() if str(key).isdecimal()}
        if len(by_index) < len(names) or sorted(by_index) != list(range(len(names))):
            return None
        names = [by_index[index] for index in range(len(names))]
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(map(str, names))


def _timm_names(module: nn.Module, num_classes: int) -> tuple[tuple[str, ...], str | None] | None:
    """Return the names of timm's ``pretrained_cfg``, or of the ImageNet that has as many classes, with a note."""
    config = getattr(module, "pretrained_cfg", None)
    if not isinstance(config, Mapping) or config.get("num_classes") != num_classes:
        return None
    labels, descriptions = config.get("label_names"), config.get("label_descriptions") or {}
    if labels and len(labels) == num_classes:
        return tuple(descriptions.get(label, label) for label in labels), None
    from timm.data import infer_imagenet_subset  # type: ignore[attr-defined]

    subset = infer_imagenet_subset(dict(config))
    if subset is None:
        return None
    return _imagenet_names(subset), _guess("timm", module, num_classes, subset)


@lru_cache
def _imagenet_names(subset: str) -> tuple[str, ...]:
    from timm.data import ImageNetInfo  # type: ignore[attr-defined]

    return tuple(ImageNetInfo(subset).label_descriptions())


def _torchvision_names(module: nn.Module, num_classes: int) -> tuple[tuple[str, ...], str] | None:
    if num_classes != 1000 or not type(module).__module__.startswith("torchvision.models."):
        return None
    from torchvision.models import ResNet18_Weights

    names = tuple(ResNet18_Weights.DEFAULT.meta["categories"])
    return names, _guess("torchvision", module, num_classes, "ImageNet-1k")


def _guess(library: str, module: nn.Module, num_classes: int, subset: str) -> str:
    return (
        f"class names are those of {subset}, as {library}'s {type(module).__name__} has {num_classes} outputs; pass "
        "names=[...] if it was trained on others"
    )
