"""Run the command line, and send this process a signal at its fourth batch: a moment that needs no clock.

    python tests/stopped_run.py SIGNAL RANK ARGUMENTS...

Only the process of that rank is hit (a single process has rank 0). Under torchrun, the others wait at their fourth
batch until the launcher stops them.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from typing import Any

from ssa_fast.cli import main
from ssa_fast.runs.predictor import Predictor

_compute, _batches = Predictor.__call__, itertools.count(1)


def _stop_at_the_fourth(self: Predictor, *arguments: Any) -> Any:
    if next(_batches) == 4:  # the first is on disk by then: no more than two wait to be written
        if os.environ.get("RANK", "0") == RANK:
            os.kill(os.getpid(), signal.Signals[SIGNAL])
        while "TORCHELASTIC_RUN_ID" in os.environ:
            time.sleep(0.1)
    return _compute(self, *arguments)


if __name__ == "__main__":
    _, SIGNAL, RANK, *arguments = sys.argv
    Predictor.__call__ = _stop_at_the_fourth  # type: ignore[method-assign]
    sys.argv[1:] = arguments
    main()
