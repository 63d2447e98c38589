"""Scores at thresholds from the other half of the images, the best of several rows, and intervals over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES, RESAMPLE_SEED, CHUNK = 4000, 0, 100


@dataclass(frozen=True)
class Folds:
    """Maps by image: even images are one half, odd ones the other.

    Attributes:
        image: (N,), the number of each map's image, from 0.
    """

    image: NDArray[np.int64]

    def halves(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return (N,) flags of the maps in each half."""
        odd = self.image % 2 == 1
        return ~odd, odd

    def held_out(self, scores: Array) -> Array:
        """Return (N,) from (N, criteria, thresholds): each at the thresholds best on the other half."""
        found = np.empty(len(scores))
        halves = self.halves()
        for tested, chosen in (halves, halves[::-1]):
            best = scores[chosen].mean(0).argmax(1)  # [criteria]
            found[tested] = np.take_along_axis(scores[tested], best[None, :, None], 2).mean((1, 2))
        return found

    def best(self, scores: dict[str, Array]) -> tuple[Array, tuple[str, str]]:
        """Return the held-out scores (N,) of the row that is best on the other half, and that row for each half."""
        found, names = np.empty(len(self.image)), []
        halves = self.halves()
        for tested, chosen in (halves, halves[::-1]):
            name = max(scores, key=lambda each: scores[each][chosen].mean(0).max(1).mean())
            names.append(name)
            found[tested] = self.held_out(scores[name])[tested]
        return found, (names[0], names[1])

    def intervals(self, values: Array) -> Array:
        """Return the 95 % intervals (rows, 2) of the means over maps of ``values`` (rows, N), by the bootstrap.

        Images are drawn, with all their maps; the thresholds stay those of the whole run.
        """
        count = int(self.image.max()) + 1
        maps = np.bincount(self.image, minlength=count)
        sums = np.stack([np.bincount(self.image, row, count) for row in values], 1)  # [images, rows]
        generator, means = np.random.default_rng(RESAMPLE_SEED), []
        for _ in range(RESAMPLES // CHUNK):
            drawn = generator.integers(count, size=(CHUNK, count))
            times = np.stack([np.bincount(each, minlength=count) for each in drawn])  # [CHUNK, images]
            means.append(times @ sums / (times @ maps)[:, None])
        return np.quantile(np.concatenate(means), (0.025, 0.975), axis=0).T
