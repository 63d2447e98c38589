"""Which ratio is a slow-down: medians of paired ratios, and a band that comes from what A/A shows.

In every round the base, the candidate and the base again are timed right after one another, so that whatever else the
machine does weighs on all three; a session has its own processes, whose luck with memory it keeps. Per session the
median of the rounds' ratios, over the sessions the median of those. The base again has the true ratio 1, so its
session medians show directly how far such a median strays.

Simulated with each process off by 3 % for its life, samples by 5 % and every fifth by a tail of infinite variance, an
equal candidate is called slower or faster at CONFIRMED sessions in 3 of 10,000 comparisons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FLOOR = 0.05  # of the band: beside busy processes sessions' medians of A/A ratios strayed by 3 to 6 %
ERRORS = 4.0  # standard errors in a band
NARROW = 0.10  # the widest band that a slow-down of 15 % still stands clearly beyond
LEAST = 3  # sessions that any judgement takes
CONFIRMED = 7  # sessions that the judgement "slower" or "faster" takes: its first luck is not enough
MEDIAN_ERROR = 1.2533  # standard error of a median, over that of a mean
SIGMA = 1.4826  # a normal distribution's standard deviation, over its median absolute deviation

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """What a case's times say: ratios of times, the band as a fraction, "same", "slower", "faster" or "too noisy".

    Too noisy is also what has not been measured often enough.
    """

    ratio: float
    again: float
    band: float
    verdict: str

    @property
    def settled(self) -> bool:
        return self.verdict != "too noisy"


@dataclass
class Times:
    """Seconds per call of one case: for each session an array ``(rounds, 3)`` of base, candidate, base again."""

    sessions: list[Floats] = field(default_factory=list)

    def milliseconds(self) -> tuple[float, float]:
        """Medians of base and candidate."""
        base, candidate, _ = np.median(np.concatenate(self.sessions), axis=0) * 1e3
        return float(base), float(candidate)

    def judge(self) -> Comparison:
        """The judgement of what has been timed so far."""
        ratios = [np.log(session[:, 1:] / session[:, :1]) for session in self.sessions]
        medians = np.array([np.median(each, axis=0) for each in ratios])  # [sessions, (candidate, again)]
        ratio, again = (float(value) for value in np.median(medians, axis=0))
        # The base again strays from 0, the candidate from its own median: both tell of the same machine.
        strayed = np.concatenate([medians[:, 1], medians[:, 0] - ratio])
        band = max(math.log1p(FLOOR), ERRORS * standard_error([each[:, 1] for each in ratios], strayed))
        if abs(ratio) > band and len(self.sessions) >= CONFIRMED:
            verdict = "slower" if ratio > 0 else "faster"
        elif abs(ratio) <= band <= math.log1p(NARROW) and len(self.sessions) >= LEAST:
            verdict = "same"
        else:
            verdict = "too noisy"
        return Comparison(math.exp(ratio), math.exp(again), math.expm1(band), verdict)


def standard_error(rounds: list[Floats], strayed: Floats) -> float:
    """Of the median over sessions of the sessions' medians, from logarithms of ratios.

    ``rounds`` are each session's A/A ratios, whose true value is 0, and ``strayed`` what sessions' medians are off by.
    The spread of a session's median is at least what the rounds' spread alone makes of it: a few medians may lie close
    together by luck.
    """
    between = SIGMA * float(np.median(np.abs(strayed)))
    within = SIGMA * float(np.median(np.abs(np.concatenate(rounds)))) * MEDIAN_ERROR / math.sqrt(len(rounds[0]))
    return MEDIAN_ERROR * max(between, within) / math.sqrt(len(rounds))
