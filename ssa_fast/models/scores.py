"""Turn logits into probabilities: of exclusive classes by a softmax, of independent ones by a sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor, nn

Probability: TypeAlias = Literal["softmax", "sigmoid"]


def choose_probability(asked: str | None, model: nn.Module, num_classes: int) -> Probability:
    """Return how a model's logits become probabilities, as asked for or, for None, by evidence.

    A single logit, and Hugging Face's ``config.problem_type`` of several labels per image, mean a sigmoid.

    Raises:
        ValueError: ``asked`` is unknown, or "softmax" for a single logit.
    """
    if asked not in (None, "softmax", "sigmoid"):
        raise ValueError(f'probability: expected "softmax", "sigmoid" or None, got {asked!r}; choose one of them')
    if asked == "softmax" and num_classes == 1:
        raise ValueError('probability: expected "sigmoid", as the softmax of a single logit is always 1, got "softmax"')
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    independent = num_classes == 1 or problem == "multi_label_classification"
    return asked or ("sigmoid" if independent else "softmax")  # type: ignore[return-value]


def probabilities(logits: Tensor, kind: Probability) -> Tensor:
    """Return the probabilities of logits (..., classes), in the same shape; of a single logit its sigmoid."""
    return logits.sigmoid() if kind == "sigmoid" or logits.shape[-1] == 1 else logits.softmax(-1)
