"""The peaks of a density of scores, from which STARK's automatic sparsity is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

GRID_POINTS = 512  # of a density curve, at least
FINENESS = 8  # its points a bandwidth, at least: thousands of neurons have a bandwidth far below the scores' range
LOWEST_PEAK = 0.05  # of the highest one; what is below is ripple


@dataclass(frozen=True)
class Peak:
    """The first peak of a density and the sparsity read off it.

    `sparsity` (of heads) and `neuron_sparsity` are shares rounded to a hundredth; they differ in reading C only. `x`
    and `density` [points] are the curve, `peak` the place on `x` where it first peaks.
    """

    sparsity: float
    neuron_sparsity: float
    x: np.ndarray
    density: np.ndarray
    peak: float


def ascending(scores) -> np.ndarray:
    """All scores, of any shape, in float64 and in order. ValueError: one that is not finite, or no two that differ."""
    values = np.sort(torch.as_tensor(scores).detach().cpu().double().flatten().numpy())
    if not np.isfinite(values).all():
        raise ValueError(f"scores: got {(~np.isfinite(values)).sum()} NaN or infinite; allowed: finite numbers")
    if len(values) < 2 or values[0] == values[-1]:
        raise ValueError(f"scores: got {len(np.unique(values))} distinct value(s); allowed: two or more")
    return values


def _peaks(density: np.ndarray) -> int:
    """Index of the lowest local maximum above `LOWEST_PEAK` of the highest; ends count only where nothing else does."""
    from scipy.signal import find_peaks

    found = find_peaks(density, height=LOWEST_PEAK * density.max())[0]
    return int(found[0] if len(found) else density.argmax())


def first_peak(values: np.ndarray, bandwidth: float, sequence: np.ndarray | None = None) -> Peak:
    """The lowest peak of the Gaussian kernel density of ascending `values`, with Scott's bandwidth times `bandwidth`;
    its sparsity is the share of `sequence` (ascending; `values` unless given) at or below it."""
    from scipy.stats import gaussian_kde

    factor = bandwidth * len(values) ** -0.2
    width = factor * values.std(ddof=1)
    start, end = values[0] - 3 * width, values[-1] + 3 * width
    x = np.linspace(start, end, max(GRID_POINTS, math.ceil((end - start) / width * FINENESS) + 1))
    density = gaussian_kde(values, factor)(x)
    peak = float(x[_peaks(density)])
    sequence = values if sequence is None else sequence
    share = round(float(sequence.searchsorted(peak, "right") / len(sequence)), 2)
    return Peak(share, share, x, density, peak)


def along_rank(values: np.ndarray, bandwidth: float) -> Peak:
    """The first peak, over ranks, of 1 / (gap between neighbours in ascending `values`, smoothed). The smoothing's
    standard deviation is `bandwidth` times Scott's, for ranks: n^(-1/5) times that of 1..n."""
    from scipy.ndimage import gaussian_filter1d

    ranks = np.arange(1, len(values)) + 0.5  # between the neighbours
    width = bandwidth * len(values) ** -0.2 * np.arange(len(values)).std()
    smooth = gaussian_filter1d(np.diff(values), width, mode="nearest")
    density = 1 / np.maximum(smooth, np.finfo(float).tiny)
    at = _peaks(density)
    share = round(float(ranks[at] / len(values)), 2)
    return Peak(share, share, ranks, density, float(ranks[at]))
