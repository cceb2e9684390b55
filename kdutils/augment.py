"""Data augmentation as in TinyBERT: copies of a task's rows in which words give way to likely or similar ones.

A word of one piece is replaced by what a masked language model puts in its place; a word of several pieces, and every
word where the model has no language-model head (MiniLM), by a neighbour in the model's own input embeddings, which
stand in for TinyBERT's GloVe vectors. Only words of the task's train split are put in: students keep no word that the
task lacks, and words that only its evaluation splits hold would tell of rows that are yet to be judged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from kdutils import bert
from kdutils.data import Data, Encoded
from kdutils.profiles import Settings

REPLACE = 0.4  # probability that a copy replaces a word
CANDIDATES = 15  # words to choose from


def pieces(data: Data, settings: Settings) -> list[str]:
    """The text of every id of the task's vocabulary; a synthetic task's words have none, and are called "word"."""
    if data.task.source == "synthetic":
        from kdutils.synthetic import SPECIAL

        return ["[special]" if i < SPECIAL else "word" for i in data.vocabulary.tolist()]
    return bert.tokenizer(settings.model).convert_ids_to_tokens(data.vocabulary.tolist())


def spans(ids: Sequence[int], text: Sequence[str]) -> list[tuple[int, int]]:
    """[start, end) of each word of a row that may be replaced: letters only, and no stop word. A word is a piece and
    the "##" pieces that follow it."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    starts = [i for i, t in enumerate(ids) if not text[t].startswith("##")]
    found = zip(starts, [*starts[1:], len(ids)], strict=True)
    words = [(a, b, "".join(text[t].removeprefix("##") for t in ids[a:b])) for a, b in found]
    return [(a, b) for a, b, word in words if word.isalpha() and word not in ENGLISH_STOP_WORDS]


class Neighbours:
    """Nearest words, by cosine of `embeddings` [vocabulary, d]; a word of several pieces has their mean. Candidates are
    the whole words of letters that are no stop words, of the ids `among` where it is given. `of(word)` gives up to
    `CANDIDATES` ids, never the word itself."""

    def __init__(self, embeddings: torch.Tensor, text: Sequence[str], among: Sequence[int] | None = None):
        ids = range(len(text)) if among is None else among
        whole = [i for i in ids if not text[i].startswith("##") and spans([i], text)]
        self.embeddings = embeddings.float()
        self.ids = torch.tensor(whole)
        self.unit = F.normalize(self.embeddings[self.ids], dim=1)
        self.known: dict[tuple[int, ...], list[int]] = {}

    def of(self, word: tuple[int, ...]) -> list[int]:
        if word not in self.known:
            near = self.unit @ F.normalize(self.embeddings[list(word)].mean(0), dim=0)
            best = self.ids[near.topk(min(CANDIDATES + 1, len(near))).indices].tolist()
            self.known[word] = [i for i in best if (i,) != word][:CANDIDATES]
        return self.known[word]


def masked_lm(model: str):
    """The model with its language-model head in eval mode, or None where the checkpoint has no such head."""
    from transformers import BertForMaskedLM
    from transformers.utils import logging

    if model == "tiny":
        return None
    with bert.quiet(logging):
        made, about = bert.reading(
            model, lambda where: BertForMaskedLM.from_pretrained(where, output_loading_info=True))
    return None if any("predictions" in name for name in about["missing_keys"]) else made.eval()


class Likely:
    """What a masked language model puts in a word's place: the words of the task's vocabulary (of its ids `among` where
    they are given) among its `CANDIDATES` first guesses, never the word itself. Like TinyBERT, the masked sentence is
    followed by the sentence itself."""

    def __init__(self, model, vocabulary: torch.Tensor, mask: int, text: Sequence[str],
                 among: Sequence[int] | None = None):
        self.model, self.vocabulary, self.mask, self.text = model, vocabulary, mask, text
        self.among = set(range(len(vocabulary)) if among is None else among)

    @torch.inference_mode()
    def of(self, row: Sequence[int], places: Sequence[int]) -> dict[int, list[int]]:
        """Candidates at each of `places` of a row of local ids that begins with [CLS]; {place: ids}."""
        original = self.vocabulary[torch.tensor(row)]
        both = torch.cat([original, original[1:]])[: self.model.config.max_position_embeddings]
        inputs = both.repeat(len(places), 1)
        inputs[torch.arange(len(places)), torch.tensor(places)] = self.mask
        segments = (torch.arange(len(both)) >= len(row)).long().expand_as(inputs)
        device = self.model.device
        hidden = self.model.bert(inputs.to(device), token_type_ids=segments.to(device))[0]
        at = hidden[torch.arange(len(places)), torch.tensor(places)]
        guesses = self.model.cls(at).topk(CANDIDATES).indices.cpu()
        return {place: self._local(some, row[place]) for place, some in zip(places, guesses, strict=True)}

    def _local(self, guesses: torch.Tensor, word: int) -> list[int]:
        at = torch.searchsorted(self.vocabulary, guesses).clamp_max(len(self.vocabulary) - 1)
        known = at[self.vocabulary[at] == guesses].tolist()
        return [i for i in known if i != word and i in self.among and not self.text[i].startswith("##")
                and self.text[i].isalpha()]


def augment(rows: Encoded, text: Sequence[str], neighbours: Neighbours, copies: int, seed: int,
            likely: Callable | None = None) -> Encoded:
    """`rows` and `copies` changed versions of each, with its label. `text` names the ids, `likely(row, places)` gives a
    masked language model's candidates (None: neighbours for every word). A copy replaces each word, with probability
    `REPLACE`, by one of its candidates; a row never grows. ValueError: no copy."""
    if copies < 1:
        raise ValueError(f"copies: got {copies}; allowed: a whole number from 1")
    generator = torch.Generator().manual_seed(seed)
    made: list[tuple[list[int], list[int]]] = []
    for ids, segments, length in zip(rows.ids.tolist(), rows.segments.tolist(), rows.lengths.tolist(), strict=True):
        row, of = ids[:length], segments[:length]
        words = spans(row, text)
        single = [a for a, b in words if b == a + 1]
        guessed = likely(row, single) if likely and single else {}
        options = {(a, b): guessed.get(a) or neighbours.of(tuple(row[a:b])) for a, b in words}
        made += [(row, of), *(_vary(row, of, options, generator) for _ in range(copies))]
    tokens = pad_sequence([torch.tensor(a, dtype=torch.int32) for a, _ in made], batch_first=True)
    kinds = pad_sequence([torch.tensor(b, dtype=torch.int8) for _, b in made], batch_first=True)
    lengths = torch.tensor([len(a) for a, _ in made])
    return Encoded(tokens, kinds, lengths, rows.labels.repeat_interleave(copies + 1))


def _vary(row: list[int], segments: list[int], options: dict, generator) -> tuple[list[int], list[int]]:
    ids, kinds, at = [], [], 0
    for (start, end), words in options.items():
        if not words or float(torch.rand((), generator=generator)) >= REPLACE:
            continue
        ids += [*row[at:start], words[int(torch.randint(len(words), (), generator=generator))]]
        kinds += segments[at : start + 1]
        at = end
    return [*ids, *row[at:]], [*kinds, *segments[at:]]


@functools.lru_cache(maxsize=1)  # the augmented runs of a seed follow each other
def of_task(data: Data, settings: Settings, copies: int, seed: int, device: str | torch.device = "cpu") -> Encoded:
    """The task's train split, augmented with its model's language-model head (if any) and input embeddings, by words
    that occur in it."""
    text, among = pieces(data, settings), data.train.ids.unique().tolist()
    encoder = bert.trim(bert.load(settings.model, data.task.outputs), data.vocabulary)
    neighbours = Neighbours(encoder.bert.embeddings.word_embeddings.weight.detach(), text, among=among)
    model = masked_lm(settings.model)
    likely = None
    if model:
        mask = bert.tokenizer(settings.model).mask_token_id
        likely = Likely(model.to(device), data.vocabulary, mask, text, among=among).of
    return augment(data.train, text, neighbours, copies, seed, likely)
