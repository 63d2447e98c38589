"""Read pickles of arrays and tensors, and of nothing else."""

from __future__ import annotations

import io
import pickle
from types import SimpleNamespace
from typing import Any

import torch

__all__ = ["Refused", "RestrictedUnpickler", "pickle_module"]

# What the pickles of the field's codebases hold: arrays and tensors. Refusing all other names limits the damage that a
# malicious file can do, but does not make untrusted files safe.
ALLOWED_GLOBALS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
}


class Refused(Exception):
    """The reason why an intact file is not read."""


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler for arrays, tensors and plain containers; any other global is refused by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage_from_bytes
        if (module, name) in ALLOWED_GLOBALS:
            return super().find_class(module, name)
        raise Refused(f"is refused: the pickle references {module}.{name}; only NumPy arrays and tensors are allowed")


def pickle_module(unpickler: type[pickle.Unpickler]) -> Any:
    """Return the part of the module ``pickle`` that ``torch.load`` uses, with an unpickler of one's own."""
    return SimpleNamespace(
        __name__=unpickler.__name__,
        Unpickler=unpickler,
        UnpicklingError=pickle.UnpicklingError,
        load=lambda file, **options: unpickler(file, **options).load(),
    )


def _storage_from_bytes(content: bytes) -> Any:
    """Load a tensor's data, a file of ``torch.save`` inside the pickle."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise Refused("is refused: a tensor in the pickle holds more than numbers") from None
