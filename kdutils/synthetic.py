"""A task made from a seed: graded sentiment words, negation and distractors, learnt by a tiny BERT in seconds.

A row is a string of words. Sentiment words weigh -2 .. 2, never 0, in unmarked strengths; a negator turns the sign of
the next sentiment word; distractors weigh nothing. The label is the sign of the sum. A small sum makes a hard row, so
that confidence means something, and `NOISE` of the training labels are flipped, so that over-confidence can hurt.
"""

from __future__ import annotations

import numpy as np

PAD, CLS, SEP, UNK, MASK = range(5)
SPECIAL = 5
NEGATORS, SENTIMENT, DISTRACTORS = 1, 12, 12
VOCABULARY = SPECIAL + NEGATORS + SENTIMENT + DISTRACTORS
NOISE = 0.05
NEGATED = 0.3  # share of sentiment words behind a negator
SEED = 0
SIZES = {"held": 256, "dev": 512, "test": 1024}


def total(words: list[int]) -> int:
    """The sum behind a row's true label, which is its sign: sentiment words' weights, each turned by a negator before
    it. Its size says how easy the row is."""
    weight, found, sign = _weights(np.random.default_rng(SEED)), 0, 1
    for word in words:
        at = word - SPECIAL - NEGATORS
        if SPECIAL <= word < SPECIAL + NEGATORS:
            sign = -1
        elif 0 <= at < SENTIMENT:
            found, sign = found + sign * int(weight[at]), 1
    return found


def _weights(rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.resize([-2, -1, 1, 2], SENTIMENT))


def splits(rows: int) -> dict[str, tuple[list, list, list]]:
    """Token ids, segment ids and labels of each split; only train's labels are noisy."""
    rng = np.random.default_rng(SEED)
    weight = _weights(rng)
    made = {}
    for name, count in ({"train": rows} | SIZES).items():
        pairs = [_row(rng, weight) for _ in range(count)]
        labels = np.array([label for _, label in pairs])
        if name == "train":
            labels ^= rng.random(count) < NOISE
        ids = [words for words, _ in pairs]
        made[name] = (ids, [[0] * len(r) for r in ids], [int(v) for v in labels])
    return made


def _row(rng: np.random.Generator, weight: np.ndarray) -> tuple[list[int], int]:
    while True:
        words, total = [CLS], 0
        for chosen in rng.integers(0, SENTIMENT, rng.integers(1, 5)):
            words += list(SPECIAL + NEGATORS + SENTIMENT + rng.integers(0, DISTRACTORS, rng.integers(0, 3)))
            sign = 1
            if rng.random() < NEGATED:
                words.append(SPECIAL + int(rng.integers(0, NEGATORS)))
                sign = -1
            words.append(SPECIAL + NEGATORS + int(chosen))
            total += sign * weight[chosen]
        if total:  # a sum of zero has no label
            return [int(w) for w in (*words, SEP)], int(total > 0)
