"""Estimates with intervals, p-values and the smallest effect that they could have seen. Pure statistics on numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.8
# effect, low, high, p (two-sided), smallest (detectable effect), n
Estimate = dict[str, float]
EMPTY = {"effect": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "smallest": np.nan, "n": 0}


def detectable(se: float, df: float) -> float:
    """The smallest effect that a two-sided t-test with this standard error and these
    degrees of freedom finds, with the right sign, with probability `POWER`: the
    noncentrality that the noncentral t needs, times `se`."""
    if not df >= 1 or not np.isfinite(se):
        return np.nan
    cut = stats.t.ppf((1 + LEVEL) / 2, df)

    def short(shift):
        return stats.nct.sf(cut, df, shift) - POWER

    return float(optimize.brentq(short, 0, 3 * cut + 5) * se)


def t_estimate(effect: float, se: float, df: float, n: int, null: float = 0.0) -> Estimate:
    """Interval, p-value against `null` and smallest detectable effect of a t-distributed estimate; only the effect
    where one value or no spread gives no interval."""
    if n < 2 or se < 1e-12:
        return EMPTY | {"effect": float(effect), "n": n}
    half = stats.t.ppf((1 + LEVEL) / 2, df) * se
    p = 2 * stats.t.sf(abs(effect - null) / se, df)
    ends = {"effect": float(effect), "low": float(effect - half), "high": float(effect + half), "p": float(p)}
    return ends | {"smallest": detectable(se, df), "n": n}


def paired(differences: Iterable[float], null: float = 0.0) -> Estimate:
    """The mean of one difference a seed, with Student's interval."""
    d = np.asarray(list(differences), dtype=float)
    if not len(d):
        return dict(EMPTY)
    se = d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.nan
    return t_estimate(d.mean(), se, len(d) - 1, len(d), null)


def unpaired(a: Iterable[float], b: Iterable[float]) -> Estimate:
    """The mean of `a` less the mean of `b`, of independent values: Welch's t. n is the smaller group's."""
    values = [np.asarray(list(x), dtype=float) for x in (a, b)]
    n = min(map(len, values))
    if n < 2:
        return EMPTY | {"n": n}
    se = math.sqrt(sum(x.var(ddof=1) / len(x) for x in values))
    df = float(stats.ttest_ind(*values, equal_var=False).df)
    return t_estimate(values[0].mean() - values[1].mean(), se, df, n)


def spread(a: Iterable[float], b: Iterable[float]) -> Estimate:
    """How much further from their median the values of `a` lie than those of `b`, on average.

    The p-value is the Brown-Forsythe test's, of which this is the t form (F = t squared). n is the smaller group's.
    """
    far = [np.abs(np.asarray(list(x), dtype=float) - np.median(list(x))) if len(x) else np.array([]) for x in (a, b)]
    n = min(map(len, far))
    effect = far[0].mean() - far[1].mean() if n else np.nan
    if n < 2:
        return EMPTY | {"effect": effect, "n": n}
    df = len(far[0]) + len(far[1]) - 2
    variance = sum(((x - x.mean()) ** 2).sum() for x in far) / df
    return t_estimate(effect, math.sqrt(variance * sum(1 / len(x) for x in far)), df, n) | {"df": df}


def pool_spreads(estimates: list[Estimate]) -> Estimate:
    """The mean of independent tasks' spreads; degrees of freedom by Welch and Satterthwaite."""
    if not estimates:
        return dict(EMPTY)
    se = np.array([(e["high"] - e["low"]) / 2 / stats.t.ppf((1 + LEVEL) / 2, e["df"]) for e in estimates])
    total = (se**2).sum()
    df = total**2 / (se**4 / [e["df"] for e in estimates]).sum() if total > 0 else sum(e["df"] for e in estimates)
    effect = np.mean([e["effect"] for e in estimates])
    return t_estimate(effect, math.sqrt(total) / len(se), df, min(e["n"] for e in estimates))


def correlation(x: Iterable[float], y: Iterable[float], groups: int = 1) -> Estimate:
    """Pearson's r with Fisher's interval, n - groups - 2 degrees of freedom; n counts points. `groups` is how many
    means were taken away from the points: one, or one of each group for a correlation within groups. NaN where one side
    is constant or there are under groups + 3 points."""
    x, y = np.asarray(list(x), dtype=float), np.asarray(list(y), dtype=float)
    free = len(x) - groups - 2
    if free < 1 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return EMPTY | {"n": len(x)}
    r, z = float(stats.pearsonr(x, y).statistic), stats.norm.ppf((1 + LEVEL) / 2)
    with np.errstate(divide="ignore"):  # |r| = 1: no width at all
        low, high = np.tanh(np.arctanh(r) + np.array([-z, z]) / math.sqrt(free))
        t = np.sqrt(free + 1) * r / np.sqrt(np.maximum(0.0, 1 - r * r))
    return {"effect": r, "low": float(low), "high": float(high), "p": float(2 * stats.t.sf(abs(t), free + 1)),
            "smallest": math.tanh((z + stats.norm.ppf(POWER)) / math.sqrt(free)), "n": len(x)}


def holm(p: Iterable[float]) -> np.ndarray:
    """Holm's adjusted p-values. A missing p counts as 1: the family is every claim, run or not."""
    p = np.asarray(list(p), dtype=float)
    filled = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(filled, kind="stable")
    steps = np.minimum(1, np.maximum.accumulate(filled[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty(len(p))
    adjusted[order] = steps
    return np.where(np.isnan(p), np.nan, adjusted)
