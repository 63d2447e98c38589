"""``python -m bench demo``: what ``ssa-fast demo`` finds on its generated scenes, as a file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from bench.command import parser_of, save
from ssa_fast import demo
from ssa_fast.cli.demo import NAMES
from ssa_fast.models.demo_net import load_classifier


def main(given: list[str]) -> int:
    """Measure and print; with ``--save`` keep the figures and the machine as JSON."""
    parser = parser_of("demo", __doc__)
    parser.add_argument("--images", type=int, default=200, help="number of scenes (%(default)s)")
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = demo.run(Path(folder, "panels"), images=options.images)
        except ValueError as error:
            parser.error(str(error))
    rows: list[dict[str, Any]] = [
        {"cam": NAMES.get(kind, f"stage {kind} alone (PCM)"), "miou": score.miou, "box_accuracy": score.box}
        for kind, score in found.scores.items()
    ]
    parameters = sum(each.numel() for each in load_classifier().parameters())
    times = {"forward_ms": found.backbone_ms, "polish_ms": found.polish_ms}
    rows.append({"average_precision": found.average_precision, "parameters": parameters} | times)
    print(*map(json.dumps, rows), sep="\n")
    save(options, ["demo", *given], rows)
    return 0
