"""Turn logits into probabilities: of exclusive classes by a softmax, of independent ones by a sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor, nn

Probability: TypeAlias = Literal["softmax", "sigmoid"]


def choose_probability(
    asked: str | None, model: nn.Module, num_classes: int, activation: str | None = None
) -> Probability:
    """Return how a model's logits become probabilities, as asked for or, for None, by evidence.

    A single logit, an ``activation`` at the end that is a sigmoid, and several labels per image by Hugging Face's
    ``config.problem_type`` mean a sigmoid.

    Raises:
        ValueError: ``asked`` is unknown, or "softmax" for a single logit.
    """
    if asked not in (None, "softmax", "sigmoid"):
        raise ValueError(f'probability: expected "softmax", "sigmoid" or None, got {asked!r}; choose one of them')
    if asked == "softmax" and num_classes == 1:
        raise ValueError('probability: expected "sigmoid", as the softmax of a single logit is always 1, got "softmax"')
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    independent = num_classes == 1 or problem == "multi_label_classification" or "sigmoid" in (activation or "")
    return asked or ("sigmoid" if independent else "softmax")  # type: ignore[return-value]


def probabilities(logits: Tensor, kind: Probability) -> Tensor:
    """Return the probabilities of logits (..., classes), in the same shape; of a single logit its sigmoid."""
    return logits.sigmoid() if kind == "sigmoid" or logits.shape[-1] == 1 else logits.softmax(-1)
