"""The profiles: bad names are one line, every task of a profile exists, and mini's choices are those of its runs."""

from dataclasses import asdict, replace

import pytest

from kdutils import claims, experiments, profiles, tasks
from kdutils.experiments import choices, common
from kdutils.records import look_up


def message(call):
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_names_are_one_line():
    assert message(lambda: profiles.profile("mni")) == "profile: got 'mni'; allowed: smoke, demo, mini, paper"
    assert message(lambda: profiles.settings("mini", "mprc")).startswith("task: got 'mprc'; allowed: rte, mrpc")
    assert message(lambda: profiles.settings("demo", "mrpc")) == "task: got 'mrpc' for profile 'demo'; allowed: rotten"
    assert message(lambda: profiles.settings("mini", "mrpc", lrr=1)).startswith("settings: got ['lrr']; allowed: batch")


def test_settings_of_a_profile():
    for name, profile in profiles.PROFILES.items():
        assert 2 <= profile.seeds <= profile.headline_seeds
        for task in profiles.task_names(name):
            found = profiles.settings(name, task)
            assert found == replace(profile.base, **profile.tasks[task])
            assert all(1 <= layer <= found.depth for layer in found.layers) and 0 < found.held < 0.5
            assert tasks.get(task).name == task
    assert profiles.settings("mini", "mrpc", lr=1.0).lr == 1.0
    assert set(profiles.task_names("mini")) == {"mrpc", "sst2", "stsb", "rotten", "rte"}
    assert profiles.settings("mini", "sst2").rows == 8000 and profiles.settings("demo", "rotten").rows == 1600


@pytest.mark.parametrize(("layers", "depth", "expected"), [(3, 12, (4, 8, 12)), (4, 6, (2, 3, 5, 6)),
                                                           (5, 6, (1, 2, 4, 5, 6)), (8, 3, (0, 1, 1, 2, 2, 2, 3, 3))])
def test_layers_match_the_nearest_of_another_depth_and_halves_the_upper(layers, depth, expected):
    assert tuple(profiles.matched(i, layers, depth) for i in range(1, layers + 1)) == expected


def test_further_seeds_go_to_tasks_that_claims_plan():
    mini, claimed = profiles.profile("mini"), {task for claim in claims.load()["claims"] for task in claim["tasks"]}
    for task in profiles.task_names("mini"):
        assert list(mini.more_seeds(task)) == (list(range(5, 10)) if task in claimed else [])
        for chapter in ("02_stark", "03_stark_auto", "04_peakd", "06_ksm"):
            specs = experiments.plan(chapter, "mini", task)
            seeds = {spec.seed for spec in specs if not spec.method.startswith("tune")}
            assert not seeds or (max(seeds) >= 5) == (task in claimed)


def test_plans_differ_between_profiles_and_stay_within_their_budget():
    for profile in profiles.PROFILES:
        for chapter in experiments.CHAPTERS:
            specs = experiments.plan(chapter, profile)
            assert len(set(specs)) == len(specs), (chapter, profile)
            assert {spec.profile for spec in specs} <= {profile}
            assert {spec.task for spec in specs} <= set(profiles.task_names(profile))
            assert message(lambda c=chapter, p=profile: experiments.plan(c, p, "nonsense")).startswith("task: got")


def test_a_teacher_does_not_depend_on_what_students_use():
    settings = profiles.settings("mini", "mrpc")
    before = common.teacher_spec("mini", "mrpc", settings).key
    student = {"lr": 7e-5, "epochs": 9, "layers": (1, 2), "keep": 0.5, "tau": 3.0}
    assert common.teacher_spec("mini", "mrpc", replace(settings, **student)).key == before
    changed = {"teacher_lr": 1e-3, "teacher_epochs": 9, "rows": 7, "model": "tiny", "batch_size": 3}
    for name, value in changed.items():
        assert common.teacher_spec("mini", "mrpc", replace(settings, **{name: value})).key != before, name


def test_a_setting_left_at_its_default_is_not_in_a_key():
    spec = common.make("01_pilot", "mini", "mrpc", "finetune", 0)
    less = {k: v for k, v in asdict(profiles.settings("mini", "mrpc")).items() if k != "tau"}
    assert replace(spec, settings=less).key == spec.key
    assert replace(spec, settings=spec.settings | {"tau": 3.0}).key != spec.key


@pytest.mark.parametrize("task", profiles.task_names("mini"))
def test_mini_uses_what_was_chosen(task):
    specs = choices.plan_choice("mini", task)
    records, missing = look_up(specs)
    if missing:
        pytest.skip(f"{len(missing)} of {len(specs)} runs of the choice are not published")
    best = choices.chosen(specs)
    settings = profiles.settings("mini", task)
    assert (tuple(best["layers"]), best["lr"]) == (settings.layers, settings.lr)


def kept(held, settings=None):
    """A record with a score on held-out rows."""
    return {"metrics": {"held": {"accuracy": held}}, "spec": {"task": "sst2", "settings": settings}}


def test_what_was_planned_stands_unless_a_trial_is_two_spreads_better(monkeypatch):
    """Five seeds at 2 epochs: mean 0.80, standard deviation 0.01; so a trial has to pass 0.82."""
    made = {}
    monkeypatch.setattr(choices, "look_up", lambda specs: ([made[s] for s in specs if s in made],
                                                           [s for s in specs if s not in made]))
    for seed, score in enumerate((0.79, 0.79, 0.80, 0.81, 0.81)):
        made[common.make("01_pilot", "mini", "sst2", "distil_from_sparse", seed, {"amount": 0.0})] = kept(score)
    three, five = choices.trials_of("epochs", "mini", "sst2")
    assert (three.settings["epochs"], five.settings["epochs"], three.seed) == (3, 5, choices.SEED)
    made[three] = kept(0.7)
    assert choices.settled("epochs", "mini", "sst2") is None  # one trial is missing
    made[five] = kept(0.8199)
    found = choices.settled("epochs", "mini", "sst2")
    assert found.planned == 2 and found.trials == {3: 0.7, 5: 0.8199} and found.seeds == 5
    assert (found.mean, found.spread) == pytest.approx((0.8, 0.01)) and found.stands
    made[five] = kept(0.8201)
    assert not choices.settled("epochs", "mini", "sst2").stands
    teacher = choices.trials_of("teacher_lr", "mini", "sst2")
    assert [spec.settings["teacher_lr"] for spec in teacher] == [2e-5, 1e-4] and teacher[0].method == "finetune"
    assert not {spec.key for spec in teacher} & {spec.key for spec in experiments.plan("01_pilot", "mini", "sst2")}
