"""Goes once its users have moved to ``bench.providers``."""

from typing import Any

from bench.providers import *  # noqa: F403
from bench.providers import PROVIDERS

BASELINES: dict[str, Any] = {
    name: each.built for name, each in PROVIDERS.items() if not each.ours and each.name != "backbone"
}


def variants(name: str, *arguments: Any) -> Any:
    return BASELINES[name](*arguments)
