"""The four knowledge types, selection, the probes' plan and data augmentation."""

import logging.handlers
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kdutils import augment, bert, data, distil, experiments, knowledge, profiles, tasks, verdicts
from kdutils.experiments import common, packing, probes
from kdutils.knowledge import Draws, Selective, assignment, constant, feak, fink, relk, resk, selection
from kdutils.records import Store, look_up
from kdutils.teacher import Signals, ask

torch.set_num_threads(1)
LN2, LN3 = math.log(2), math.log(3)
# Two rows, embeddings and two layers, width 3.
STUDENT = torch.tensor([[[9.0, 9, 9], [3, 0, 0], [0, 2, 0]], [[9, 9, 9], [0, 1, 0], [1, 1, 1]]])
# The same for a four-layer teacher, whose layers 2 and 4 are assigned to the student's.
TEACHER = torch.tensor([[[7.0, 7, 7], [7, 7, 7], [0, 5, 0], [1, 0, 1], [0, 8, 0]],
                        [[7, 7, 7], [7, 7, 7], [0, -4, 0], [2, 0, 0], [3, 3, 3]]])


def test_finetune_knowledge_by_hand():
    logits = torch.tensor([[1.0, 2, 1], [3, 1, 4]]).log()  # probabilities 1/4 2/4 1/4 and 3/8 1/8 4/8
    labels = torch.tensor([1, 0])
    assert float(fink(logits, labels)) == pytest.approx((LN2 + math.log(8 / 3)) / 2)
    assert float(fink(logits, labels, literal=True)) == pytest.approx(LN2)  # the second row is predicted wrongly
    assert float(fink(torch.tensor([[1.0], [4.0]]), torch.tensor([0.0, 2.0]))) == pytest.approx((1 + 4) / 2)


def test_response_knowledge_by_hand():
    student = 2 * torch.tensor([[1.0, 1, 2], [1, 1, 1]]).log()  # at temperature 2: 1/4 1/4 1/2, and uniform
    teacher = 2 * torch.tensor([[4.0, 1, 1], [1, 1, 1]]).log()  # 2/3 1/6 1/6, and uniform
    forward = 2 / 3 * math.log(8 / 3) + 1 / 6 * math.log(2 / 3) + 1 / 6 * math.log(1 / 3)
    backward = 1 / 4 * math.log(3 / 8) + 1 / 4 * math.log(3 / 2) + 1 / 2 * LN3
    assert float(resk(student, teacher, tau=2.0)) == pytest.approx(4 * forward / 2, rel=1e-5)
    assert float(resk(student, teacher, tau=2.0, literal=True)) == pytest.approx(backward, rel=1e-5)
    assert float(resk(torch.tensor([[1.0]]), torch.tensor([[4.0]]), tau=2.0)) == 9.0


def test_feature_knowledge_by_hand():
    distances = [math.sqrt(2), 0.0, 2.0, 0.0]  # orthogonal, same direction; opposite, same direction
    assert float(feak(STUDENT, TEACHER, (2, 4))) == pytest.approx(sum(distances) / 4, abs=1e-5)
    assert float(feak(STUDENT, TEACHER, (2, 4), literal=True)) == pytest.approx(sum(distances), abs=1e-5)


def test_feature_knowledge_has_a_gradient_where_student_and_teacher_agree():
    student = torch.ones(2, 3, 3, requires_grad=True)
    feak(student, torch.ones(2, 3, 3), (1, 2)).backward()
    assert torch.isfinite(student.grad).all()


def test_relation_knowledge_by_hand():
    # Row 1: (3,0,0)(0,2,0)^T has a single entry 6, (0,5,0)(1,0,1)^T two of 5; all are divided by d = 3.
    # Row 2: (0,1,0)(1,1,1)^T is a row of ones, (0,-4,0)(2,0,0)^T one entry -8 in the same row: 9, 1, 1 apart.
    rows = [(36 + 25 + 25) / 9 / 9, (81 + 1 + 1) / 9 / 9]
    assert float(relk(STUDENT, TEACHER, (2, 4))) == pytest.approx(sum(rows) / 2)
    assert float(relk(STUDENT, TEACHER, (2, 4), literal=True)) == pytest.approx(sum(rows))


def test_relation_knowledge_equals_explicit_fsp_matrices():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 4, 16, generator=generator), torch.randn(5, 7, 16, generator=generator)
    student.requires_grad_()
    assigned = assignment(3, 6)

    def fsp(h1, h2):
        return h1[:, :, None] * h2[:, None, :] / h1.shape[-1]

    pairs = [torch.nn.functional.mse_loss(fsp(student[:, i], student[:, i + 1]), fsp(teacher[:, a], teacher[:, a + 1]))
             for i, a in enumerate(assigned[:-1], 1)]
    explicit = torch.stack(pairs).mean()
    ours = relk(student, teacher, assigned)
    torch.testing.assert_close(ours, explicit)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (ours, explicit)))


@pytest.mark.parametrize("student, teacher, layers", [(3, 12, (4, 8, 12)), (6, 12, (2, 4, 6, 8, 10, 12)),
                                                      (3, 6, (2, 4, 6)), (4, 6, (2, 3, 5, 6)), (2, 2, (1, 2))])
def test_assignment(student, teacher, layers):
    assert assignment(student, teacher) == layers


@pytest.mark.parametrize("student", [1, 7])
def test_assignment_names_the_allowed_depths(student):
    with pytest.raises(ValueError, match=rf"student layers: got {student}; allowed: 2\.\.6"):
        assignment(student, 6)


@pytest.mark.parametrize("assigned", [(4,), (2, 3, 4)])
def test_every_student_layer_has_one_assigned(assigned):
    """One layer alone would be compared with all of the student's, three with relations of two."""
    for loss in (feak, relk):
        with pytest.raises(ValueError, match=rf"^assigned layers: got {len(assigned)}; allowed: 2$"):
            loss(STUDENT, TEACHER, assigned)


def test_the_literal_forms_are_of_classification():
    one = torch.tensor([[1.0], [4.0]])
    for loss, rest in ((fink, (torch.tensor([0.0, 2.0]),)), (resk, (one, 2.0))):
        with pytest.raises(ValueError, match="^literal: got a regression; allowed: classification$"):
            loss(one, *rest, literal=True)


# ------------------------------------------------------------------------------------------------------------ selection


@pytest.fixture(scope="module")
def setup():
    """A tiny teacher, its signals on the synthetic task, and the settings of a short run."""
    settings = replace(profiles.settings("smoke", "synthetic"), rows=96, epochs=1, batch_size=32)
    task = data.load("synthetic", settings)
    model = bert.load("tiny", 2, seed=0)
    return settings, task, model, ask(model, task.train, states=True)


def distilled(setup, select, **options):
    settings, task, model, signals = setup
    student = bert.keep_layers(model, settings.layers)
    selective = Selective(signals, assignment(2, 4), select, tau=2.0, **options)
    outcome = distil.train(student, task.train, selective, settings, seed=0)
    return student, selective, outcome


def test_a_selection_of_zeros_trains_nothing(setup):
    settings, _, model, _ = setup
    student, selective, outcome = distilled(setup, constant((0, 0, 0, 0)))
    start = bert.keep_layers(model, settings.layers)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), start.parameters(), strict=True))
    assert selective.report()["skipped"] == outcome.steps == 3 and outcome.losses["loss"] == 0
    trained, *_ = distilled(setup, constant((1, 0, 0, 0)))
    assert not torch.equal(trained.classifier.weight, start.classifier.weight)


def test_what_is_not_selected_gives_no_gradient(setup):
    """Feature knowledge alone never reaches the classifier: not even weight decay moves it."""
    settings, _, model, _ = setup
    student, *_ = distilled(setup, constant(selection("FeaK")))
    assert torch.equal(student.classifier.weight, model.classifier.weight)
    assert not torch.equal(student.bert.encoder.layer[0].output.dense.weight,
                           model.bert.encoder.layer[0].output.dense.weight)


def test_losses_are_divided_by_their_mean_over_the_first_steps():
    states = torch.zeros(1, 3, 2)
    signals = Signals(torch.zeros(1, 1), torch.ones(1, 5, 2).bfloat16())
    selective = Selective(signals, (2, 4), constant((0.5, 0, 0, 0)), tau=1.0, weights=(3, 1, 1, 1), first=2)
    batch = {"labels": torch.tensor([0.0]), "index": torch.tensor([0])}
    losses = [float(selective(batch, torch.tensor([[z]]), states)["loss"]) for z in (1.0, 3.0, 2.0)]
    # Squared errors 1, 9, 4; divisors 1, (1 + 9) / 2, 5; times an action of 0.5 and a weight of 3.
    assert losses == pytest.approx([1.5 * 1, 1.5 * 9 / 5, 1.5 * 4 / 5])


def test_report_holds_mean_actions_by_thirds(setup):
    _, selective, _ = distilled(setup, lambda step, student, teacher: (step == 0, step == 1, 0.5, 0))
    assert selective.report()["chosen"] == {"FinK": [1, 0, 0], "ResK": [0, 1, 0], "FeaK": [0.5] * 3, "RelK": [0] * 3}


def test_random_draws_depend_on_the_draw_and_not_on_the_seed(setup):
    sequences = []
    for seed, draw in ((1, 7), (2, 7), (2, 8)):
        torch.manual_seed(seed)
        policy = Draws(draw)
        sequences.append([policy(step) for step in range(300)])
    first, again, other = sequences
    assert first == again != other
    assert set(first) == set(knowledge.CHOICES) and (0, 0, 0, 0) not in first


def test_draws_go_on_from_call_to_call_and_stay_what_the_published_runs_had():
    policy = Draws(7)
    found = [policy(step) for step in (0, 0, 5)]
    assert found == [(0, 0, 0, 1), (1, 0, 0, 0), (0, 0, 1, 0)]


def test_random_one_stops_selecting_after_the_first_epoch(setup):
    _, selective, _ = distilled((replace(setup[0], epochs=3), *setup[1:]), Draws(0, until=3))
    first, rest = selective.actions[:3], selective.actions[3:]
    assert len(rest) == 6 and set(rest) == {(1, 1, 1, 1)}
    assert first == [Draws(0)(0)] + first[1:] and set(first) != {(1, 1, 1, 1)}


@pytest.mark.parametrize("names", ["", "FinK&Fink", "all"])
def test_unknown_knowledge_is_named(names):
    with pytest.raises(ValueError, match="knowledge: got .*; allowed: FinK, ResK, FeaK, RelK"):
        selection(names)


# --------------------------------------------------------------------------------------------------------------- probes


def test_students_start_from_the_first_to_the_last_layer_or_from_the_bottom():
    assert [probes.positions(n, 6) for n in (2, 3, 4)] == [(1, 6), (1, 3, 6), (1, 2, 4, 6)]
    assert probes.positions(3, 12, bottom=True) == (1, 2, 3)
    with pytest.raises(ValueError, match="layers: got 1; allowed: 2..6"):
        probes.positions(1, 6)


def test_every_prefix_of_a_plan_compares_the_policies_fairly():
    specs = probes.plan("mini", "mrpc")
    assert len(set(specs)) == len(specs)
    methods = [spec.method for spec in specs if spec.method in ("Random-All", "fixed-seed", "Random-One")]
    for end in range(0, len(methods), 3 * probes.ROUND):
        counts = {methods[:end].count(name) for name in ("Random-All", "fixed-seed", "Random-One")}
        assert len(counts) == 1
    assert methods.count("Random-All") == probes.REPEATS == 200


def test_the_null_differs_from_fixed_knowledge_in_its_seeds_only():
    specs = probes.plan("mini", "mrpc")
    fixed = {s.seed for s in specs if s.method == "fixed" and s.args["knowledge"] == probes.ALL}
    null = {s.seed for s in specs if s.method == "fixed-seed"}
    assert fixed and not fixed & null


def test_replays_take_the_best_and_the_middle_sequences_once_all_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    first = [s for s in probes.plan("smoke", "synthetic") if s.method == "Random-All"]
    assert probes.replays("smoke", "synthetic") == []
    for spec, score in zip(first, (0.6, 0.9, 0.7), strict=True):
        Store().put(spec, {"metrics": {"dev": {"accuracy": score}}}, 1.0)
    found = probes.replays("smoke", "synthetic")
    assert {s.args["was"]: s.args["draw"] for s in found} == {"best": 1, "middle": 2}
    assert all(s.seed >= probes.REPLAY_SEED for s in found) and set(found) <= set(probes.plan("smoke", "synthetic"))


def test_sequences_are_ranked_by_the_verdicts_metric_and_replayed_as_often_as_a_verdict_needs(monkeypatch):
    """On MRPC a student's F1 may be high because it answers a constant; then its Matthews correlation is 0."""
    def known(specs, store):
        scores = [{"f1": 0.8 - 0.01 * i, "accuracy": 0.7, "matthews": 0.01 * i} for i in range(len(specs))]
        return [{"spec": {"args": spec.args}, "metrics": {"dev": score}, "best": {"dev": score}}
                for spec, score in zip(specs, scores, strict=True)], []

    monkeypatch.setattr(probes, "look_up", known)
    found = probes.replays("mini", "mrpc")
    assert {s.args["draw"] for s in found if s.args["was"] == "best"} == {17, 18, 19}
    for was in ("best", "middle"):
        assert len({s.seed for s in found if s.args["was"] == was}) >= verdicts.FEWEST


@pytest.mark.parametrize("profile, task, names", [("mini", "mrpc", knowledge.TYPES), ("paper", "rte", knowledge.TYPES),
                                                  ("smoke", "synthetic", ["FinK"]), ("demo", "rotten", ["FinK"])])
def test_types_are_left_out_of_each_half(profile, task, names):
    planned = {(s.method, s.args["knowledge"], s.seed) for s in probes.plan(profile, task)
               if s.method in ("early", "late")}
    seeds = {s.seed for s in probes.plan(profile, task) if s.method == "fixed"}
    assert planned == {(m, name, s) for m in ("early", "late") for name in names for s in seeds}


def test_early_and_late_share_all_types_but_one_and_are_trained_as_packs(setup, monkeypatch):
    settings, task, model, signals = setup
    made = SimpleNamespace(settings=replace(settings, epochs=2), data=task, teacher=model, signals={"train": signals})
    monkeypatch.setattr(common, "bench", lambda spec, states: made)
    specs = [probes.make(probes.CHAPTER, "smoke", "synthetic", method, 0, knowledge="FeaK")
             for method in ("early", "late")]
    assert len(experiments.packs([*specs, probes.make(probes.CHAPTER, "smoke", "synthetic", "fixed-seed", 0)])) == 1
    early, late = packing.selections([next(probes.stages(spec)) for spec in specs]).actions.tolist()
    every, rest = [1, 1, 1, 1], [1, 1, 0, 1]
    assert early == [every] * 3 + [rest] * 3 and late == early[::-1]  # 96 rows, batches of 32, two epochs


def test_weights_are_equal_unless_a_trial_is_clearly_better():
    equal, low = probes.TRIALS[0], probes.TRIALS[3]
    assert probes.best_weights({equal: [0.70, 0.72], low: [0.70, 0.73]}) == equal
    assert probes.best_weights({equal: [0.70, 0.72], low: [0.78, 0.80]}) == low
    # A deviation of 0.0141 a seed makes the error of a difference of means 0.0141.
    assert [probes.best_weights({equal: [0.70, 0.72], low: [x, x + 0.02]}) for x in (0.713, 0.715)] == [equal, low]


@pytest.mark.parametrize(("method", "args", "weighed"), [
    ("fixed", {"knowledge": "FinK&ResK&FeaK"}, False),
    ("fixed", {"knowledge": "RelK"}, True),
    ("fixed", {"knowledge": "FinK&ResK&FeaK&RelK"}, True),
    ("teacher-head", {"knowledge": "FeaK"}, False),
    ("early", {"knowledge": "FinK"}, True),  # the other types are there in both halves
    ("Random-One", {"draw": 0}, True),
    ("constant", {}, True),
    ("vanilla-KD", {"layers": 2}, False),
    ("finetune-augmented", {"copies": 2}, False),
])
def test_weights_are_part_of_a_spec_only_where_they_change_the_run(monkeypatch, method, args, weighed):
    plain = probes.make("06_ksm", "mini", "rotten", method, 0, **args)
    monkeypatch.setitem(probes.WEIGHTS, ("mini", "rotten"), (1.0, 1.0, 1.0, 0.1))
    made = probes.make("06_ksm", "mini", "rotten", method, 0, **args)
    assert (made != plain) is weighed
    assert made.args.get("weights") == ([1.0, 1.0, 1.0, 0.1] if weighed else None)


@pytest.mark.parametrize("task", ["mrpc", "sst2", "rotten", "rte"])
def test_the_weights_are_those_that_the_published_trials_choose(task):
    records, missing = look_up(s for s in probes.plan("mini", task) if s.method == "tuning")
    if missing:
        pytest.skip(f"{len(missing)} of the {task} trials are not published")
    scores = {}
    for record in records:
        held = record["metrics"]["held"][tasks.get(task).verdict_metric]
        scores.setdefault(tuple(record["spec"]["args"]["weights"]), []).append(held)
    assert probes.WEIGHTS.get(("mini", task), probes.TRIALS[0]) == probes.best_weights(scores)


# --------------------------------------------------------------------------------------------------------- augmentation

TEXT = ["[CLS]", "[SEP]", "good", "great", "fine", "bad", "the", "##ly", "film", "7"]
ALONG = torch.tensor([[0.0, 0], [0, 0], [1, 0], [1, 0.1], [1, 0.3], [-1, 0], [0, 1], [0.9, 0.4], [0, -1], [1, 0.05]])


def test_only_whole_words_of_letters_that_are_no_stop_words_are_replaced():
    row = [0, 6, 2, 7, 8, 9, 5, 1]  # [CLS] the good ##ly film 7 bad [SEP]
    assert augment.spans(row, TEXT) == [(2, 4), (4, 5), (6, 7)]


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(augment, "CANDIDATES", 2)


def test_neighbours_are_the_nearest_other_words(two):
    near = augment.Neighbours(ALONG, TEXT)
    assert near.of((2,)) == [3, 4]
    assert near.of((2, 7)) == [3, 4] or near.of((2, 7)) == [4, 3]  # the mean of its pieces
    assert 5 not in near.of((2,)) and 9 not in near.of((2,))


def test_augmented_rows_keep_labels_lengths_and_everything_else(two):
    rows = data.Encoded(torch.tensor([[0, 6, 2, 7, 8, 1], [0, 5, 1, 0, 0, 0]]).int(),
                        torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]]).to(torch.int8), torch.tensor([6, 3]),
                        torch.tensor([1, 0]))
    near = augment.Neighbours(ALONG, TEXT)
    made = augment.augment(rows, TEXT, near, copies=40, seed=0)
    assert len(made) == 2 * 41 and made.labels.tolist() == [1] * 41 + [0] * 41
    assert torch.equal(made.ids[0], rows.ids[0]) and torch.equal(made.ids[41, :3], rows.ids[1, :3])
    long = [(a[:n], b[:n]) for a, b, n in zip(made.ids[:41].tolist(), made.segments[:41].tolist(), made.lengths[:41],
                                              strict=True)]
    assert {n for n in made.lengths[:41].tolist()} == {5, 6}  # "good ##ly" becomes one piece, or stays
    for ids, segments in long:
        assert ids[:2] == [0, 6] and ids[-1] == 1 and segments[-2:] == [1, 1] and sum(segments) == 2
    many = augment.augment(rows.take([0]), TEXT, near, copies=1000, seed=0)
    assert float((many.lengths == 5).double().mean()) == pytest.approx(0.4, abs=0.05)  # the chance that it does
    again = augment.augment(rows, TEXT, near, copies=40, seed=0)
    assert again.fingerprint() == made.fingerprint() != augment.augment(rows, TEXT, near, 40, seed=1).fingerprint()


def test_a_masked_language_model_fills_the_words_of_the_task_only(tmp_path, monkeypatch):
    from transformers import BertForMaskedLM

    monkeypatch.setattr(augment, "CANDIDATES", 4)
    torch.manual_seed(0)
    config = bert.tiny_config(vocabulary=30)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    model = augment.masked_lm(str(tmp_path))
    vocabulary = torch.arange(0, 30, 3)  # ten of the model's ids are the task's
    with torch.no_grad():
        model.cls.predictions.bias.zero_()
        model.cls.predictions.bias[torch.tensor([6, 9, 12, 7])] = torch.tensor([90.0, 80.0, 70.0, 99.0])
    likely = augment.Likely(model, vocabulary, mask=4, text=TEXT)
    asked = []
    model.bert.register_forward_pre_hook(lambda _, ids, more: asked.append((*ids, *more.values())), with_kwargs=True)
    assert likely.of([0, 2, 5, 1], [1, 2]) == {1: [3, 4], 2: [2, 3, 4]}  # 7 is no id of the task; never the word itself
    ((ids, segments),) = asked
    assert ids.tolist() == [[0, 4, 15, 3, 6, 15, 3], [0, 6, 4, 3, 6, 15, 3]]  # masked, and then the sentence itself
    assert segments.tolist() == [[0, 0, 0, 0, 1, 1, 1]] * 2


def test_a_checkpoint_without_a_language_model_head_has_none(tmp_path):
    from transformers import BertModel
    from transformers.utils import logging as transformers_logging

    BertModel(bert.tiny_config()).save_pretrained(tmp_path)
    said = logging.handlers.BufferingHandler(capacity=1000)
    transformers_logging.add_handler(said)
    assert augment.masked_lm(str(tmp_path)) is None
    transformers_logging.remove_handler(said)
    assert said.buffer == []  # it was asked for, so transformers need not report what is missing
