"""A request that cannot be answered, with the sentence that its sender reads."""

from __future__ import annotations


class Refusal(ValueError):
    """An error of the request, or of what it asks for.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
