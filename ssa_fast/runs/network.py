"""What of a network and its SSA decides the outputs of a run, as JSON: the identity of what was not read from files."""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ssa_fast.models.zoo import Classifier
    from ssa_fast.ssa import SSA

NOT_OF_SSA = ("model", "info", "affinity", "probability", "names", "_names_note")
"""Attributes of ``SSA`` that do not decide the outputs by themselves: a run's scores and names are the classifier's."""


def hash_weights(model: torch.nn.Module) -> str:
    """Return a hash of a model's parameters and buffers, whatever file they come from."""
    with ThreadPoolExecutor() as threads:  # a short run would notice the tenth of a second that one thread takes
        digests = list(threads.map(_hash_value, *zip(*model.state_dict().items(), strict=True)))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32]


def _hash_value(name: str, value: Any) -> bytes:
    digest = hashlib.sha256(f"{name}\0".encode())  # which processors have instructions for
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized:
        digest.update(f"{value.dtype}\0{tuple(value.shape)}\0".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    else:  # packed weights of quantized layers
        buffer = io.BytesIO()
        torch.save(value, buffer)
        digest.update(buffer.getvalue())
    return digest.digest()


def describe_network(classifier: Classifier, ssa: SSA) -> dict[str, Any]:
    """Return the options of the classifier's preprocessing and of SSA, beside the weights; empty for another callable.

    The categories, which can be thousands, are hashed: they name classes in the outputs.
    """
    if not hasattr(ssa, "info"):
        return {}
    categories = hashlib.blake2b("\0".join(classifier.categories).encode(), digest_size=16)
    described = {name: _text(value) for name, value in vars(ssa).items() if name not in NOT_OF_SSA}
    return {
        "network": type(classifier.model).__name__,
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "input_size": classifier.input_size and list(classifier.input_size),
        "probability": classifier.probability,
        "categories": categories.hexdigest(),
        "ssa": described,
    }


def _text(value: object) -> str:
    """Return a value's text, the same in every process."""
    return getattr(value, "__qualname__", None) or repr(value)
