"""``python -m bench demo``: what ``ssa-fast demo`` finds on its generated scenes, as a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.command import parser_of, save
from ssa_fast import demo
from ssa_fast.cli.demo import NAMES
from ssa_fast.models.demo_net import load_classifier

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(given: Sequence[str]) -> int:
    """Measure and print; with ``--save`` keep the figures and the machine as JSON."""
    parser = parser_of("demo", __doc__)
    parser.add_argument("--images", type=int, default=200, help="number of scenes (%(default)s)")
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        report = demo.run(Path(folder) / "panels", images=options.images)
    rows: list[dict[str, Any]] = [
        {"cam": NAMES.get(kind, f"stage {kind} alone (PCM)"), "miou": score.miou, "box_accuracy": score.box}
        for kind, score in report.scores.items()
    ]
    of_network = {
        "average_precision": report.average_precision,
        "parameters": sum(each.numel() for each in load_classifier().parameters()),
    }
    rows.append(of_network | {"forward_ms": report.backbone_ms, "polish_ms": report.polish_ms})
    for row in rows:
        print(
            "  ".join(f"{name} {value:.3g}" if isinstance(value, float) else str(value) for name, value in row.items())
        )
    save(options, ["demo", *given], rows)
    return 0
