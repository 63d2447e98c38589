"""Result files of ``python -m bench``: read, checked and merged."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Row = dict[str, Any]

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
STATUSES = ("ok", "unsupported", "out of memory", "over budget", "wrong", "failed")
TEXTS = ("problem", "provider", "status", "layout", "affinity")
SIZES = ("B", "K", "C", "H", "W", "L")
QUANTILES = ("warm_ms", "ratio", "share_of_backbone")
MACHINE = {"cpu": ("cpu", "threads", "torch"), "cuda": ("gpu", "torch")}  # without which figures cannot be compared


class Malformed(Exception):
    """A file that cannot be drawn; the message is one sentence for people."""


@dataclass
class Results:
    """What was measured on one device of one machine; a later file's row replaces that of an earlier one."""

    device: str
    machine: dict[str, Any]
    sources: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def add(self, source: str, found: dict[str, Any]) -> None:
        self.sources.append(source)
        commit = str(found["machine"].get("commit") or "unknown")
        self.commits += [commit] if commit not in self.commits else []
        for row in found["rows"]:
            self.rows[row["problem"], row["provider"]] = row | {"limit_s": found["settings"]["limit_s"]}

    def problems(self) -> dict[str, dict[str, Row]]:
        """Rows by problem and provider, in the order they were measured."""
        found: dict[str, dict[str, Row]] = {}
        for (problem, provider), row in self.rows.items():
            found.setdefault(problem, {})[provider] = row
        return found

    @property
    def memory_mib(self) -> float | None:
        """What the device has."""
        gib = self.machine.get("gpu_memory_gib" if self.device == "cuda" else "memory_gib")
        return gib * 1024 if isinstance(gib, int | float) else None

    def beside(self) -> list[str]:
        """What a figure has to stand beside, without the date."""
        has = self.machine
        parts = [str(has["gpu"])] if self.device == "cuda" else [str(has["cpu"]), f"{has['threads']} threads"]
        parts += [f"{self.memory_mib / 1024:g} GiB"] if self.memory_mib else []
        parts.append(f"torch {has['torch']}")
        return [*parts, f"commit{'s' if len(self.commits) > 1 else ''} {', '.join(self.commits)}"]


def read(paths: Iterable[Path]) -> list[Results]:
    """The files' results, one entry per device, later files over earlier ones.

    Raises:
        Malformed: a file is not a result file, or two of one device come from different machines.
    """
    devices: dict[str, Results] = {}
    for path in paths:
        found = _load(path)
        machine, device = found["machine"], found["settings"]["device"]
        results = devices.setdefault(device, Results(device, machine))
        if _identity(machine, device) != _identity(results.machine, device):
            raise Malformed(
                f"{path}: expected the machine of the files before, {_identity(results.machine, device)}, "
                f"got {_identity(machine, device)}: one picture shows one machine, so plot them apart."
            )
        results.add(path.name, found)
    return list(devices.values())


def _identity(machine: dict[str, Any], device: str) -> str:
    return ", ".join(f"{part} {machine[part]}" for part in MACHINE[device])


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Malformed(f"{path}: expected a result file, got {error.strerror or error}.") from None
    except ValueError as error:
        raise Malformed(f"{path}: expected JSON, got {error}.") from None
    if not isinstance(found, dict):
        raise _wrong(path, "the file", "an object with machine, settings and rows", found)
    for part, kind in (("machine", dict), ("settings", dict), ("rows", list)):
        if not isinstance(found.get(part), kind):
            raise _wrong(path, part, "an object" if kind is dict else "a list", found.get(part))
    settings = found["settings"]
    if settings.get("device") not in ("cpu", "cuda"):
        raise _wrong(path, "settings.device", "'cpu' or 'cuda'", settings.get("device"))
    if not _is_number(settings.get("limit_s")):
        raise _wrong(path, "settings.limit_s", "a number of seconds", settings.get("limit_s"))
    for part in MACHINE[settings["device"]]:
        if found["machine"].get(part) is None:
            raise _wrong(path, f"machine.{part}", "its name or number", None)
    for number, row in enumerate(found["rows"]):
        _check_row(path, f"rows[{number}]", row)
    return found


def _check_row(path: Path, where: str, row: object) -> None:
    if not isinstance(row, dict):
        raise _wrong(path, where, "an object", row)
    checks = [(name, "a text", isinstance(row.get(name), str)) for name in TEXTS]
    checks += [(name, "an integer above 0", type(row.get(name)) is int and row[name] > 0) for name in SIZES]
    checks.append(("ours", "true or false", isinstance(row.get("ours"), bool)))
    checks.append(("dtype", f"one of {', '.join(BYTES)}", row.get("dtype") in BYTES))
    checks.append(("status", f"one of {', '.join(STATUSES)}", row.get("status") in STATUSES))
    checks += [(name, "null or positive p50, p20 and p80", _is_quantiles(row.get(name))) for name in QUANTILES]
    for name, infinite in (("peak_extra_mib", False), ("error", True)):
        right = row.get(name) is None or _is_number(row[name], infinite)
        checks.append((name, "null or a number", right))
    for name, expected, right in checks:
        if not right:
            raise _wrong(path, f"{where}.{name}", expected, row.get(name))


def _is_number(value: object, infinite: bool = False) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and (infinite or math.isfinite(value))


def _is_quantiles(value: object) -> bool:
    """Null or an object with a positive ``p50``; ``p20`` and ``p80`` may be missing or null."""
    if value is None:
        return True
    if not isinstance(value, dict) or not _is_number(value.get("p50")) or value["p50"] <= 0:
        return False
    return all(value.get(name) is None or (_is_number(value[name]) and value[name] > 0) for name in ("p20", "p80"))


def _wrong(path: Path, where: str, expected: str, found: object) -> Malformed:
    text = json.dumps(found, ensure_ascii=False)
    text = text if len(text) <= 60 else f"{text[:57]}…"
    return Malformed(f"{path}: {where}: expected {expected}, got {text}; make the file with python -m bench.")
