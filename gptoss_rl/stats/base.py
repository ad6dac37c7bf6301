"""What all of the package uses: levels, and the error."""

import numpy as np

ALPHA, POWER = 0.05, 0.8
RESAMPLES = 9_999


class StatsError(RuntimeError):
    """Evaluations that cannot be compared, or a plan that cannot be made."""


def whole(values: np.ndarray) -> bool:
    """Whether every problem counts as 0 or as 1 (or, of differences, -1): one sample a problem, or samples that all agree."""
    return bool(np.isin(values, (-1.0, 0.0, 1.0)).all())
