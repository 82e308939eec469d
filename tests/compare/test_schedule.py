import re

import pytest
from datasets import Dataset

from raft_peft.compare import CompareSettings
from raft_peft.compare.rows import nested_rows
from raft_peft.compare.schedule import Planned, Progress, planned_runs, settings_at, train_sizes


def settings(**options):
    return CompareSettings("m", "o", **{"methods": "rail,raft", "seeds": 3, "learning_rates": "1e-3,1e-2", **options})


def test_sizes_ascend_and_those_at_or_above_the_rows_are_all_of_them():
    sizes = settings(train_sizes="300, 100,all,2000")
    assert train_sizes(sizes, 1000) == [100, 300, None]
    assert train_sizes(sizes, 250) == [100, None]
    assert train_sizes(settings(train_sizes="100,300"), 1000) == [100, 300]
    assert train_sizes(settings(), 1000) == [None]


def test_fewer_rows_are_among_more_and_not_the_first_of_the_file():
    rows = Dataset.from_dict({"prompt": [str(n) for n in range(50)]})
    found = {count: nested_rows(rows, count, seed=0)["prompt"][:] for count in (5, 20)}
    assert found[20][:5] == found[5] != [str(n) for n in range(5)]
    assert nested_rows(rows, 5, seed=1)["prompt"][:] != found[5]
    assert nested_rows(rows, None, seed=0) is rows


def test_a_budget_of_steps_is_the_same_for_every_size_and_one_of_epochs_in_proportion():
    steps = settings(max_steps=400, eval_steps=40, warmup_steps=20)
    assert settings_at(steps, 100, 1000) == steps
    epochs = settings(max_steps=400, eval_steps=40, warmup_steps=20, budget="epochs")
    tenth = settings_at(epochs, 100, 1000)
    # 20 of 400 steps are a share of 0.05, which stays.
    assert (tenth.max_steps, tenth.eval_steps, tenth.warmup_steps) == (40, 4, 0.05)
    assert settings_at(epochs, None, 1000) == epochs
    assert settings_at(settings(max_steps=400, warmup_steps=0.1, budget="epochs"), 1, 1000).max_steps == 1


def test_rates_are_tried_at_the_largest_size_alone():
    planned = list(planned_runs(settings(train_sizes="10,20,all"), [10, 20, None]))
    counts = {(run.method, run.size): planned.count(run) for run in planned}
    # Two rates and two more seeds; then three seeds at each other size. What is not trained is run once.
    assert counts == {("rail", None): 1, ("raft", None): 4, ("raft", 10): 3, ("raft", 20): 3}


def test_what_is_left_and_when_it_ends():
    a, b = Planned(None, "raft", None), Planned("stsb", "ce", 10)
    progress = Progress([a, a, a, b, b])
    assert progress.seconds_left is None and str(progress) == "0 of 5 runs are done. Left: 3 of raft, 2 of stsb ce."
    progress.finish(a, 600)
    assert progress.seconds_left == 2 * 600 + 2 * 600  # of `ce` nothing is known yet
    progress.finish(b, 60)
    assert progress.seconds_left == 2 * 600 + 60
    progress.finish(b, None)  # it failed
    progress.finish(a, 1200)
    assert progress.seconds_left == 900
    text = r"4 of 5 runs are done. Left: 1 of raft, about 15 min, until \w+ \d\d \w+ \d\d:\d\d\."
    assert re.fullmatch(text, str(progress))
    progress.finish(a, 9 * 3600)
    assert str(progress) == "5 of 5 runs are done."


def test_a_run_at_another_size_is_as_long_as_others_of_its_method():
    progress = Progress([Planned(None, "raft", 10), Planned(None, "raft", None), Planned(None, "ce", None)])
    progress.finish(Planned(None, "raft", None), 100)
    progress.finish(Planned(None, "ce", None), 7000)
    assert progress.seconds_left == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_sizes": "0,all"}, "must be numbers above 0 or all"),
        ({"train_sizes": "many"}, "must be numbers above 0 or all"),
        ({"train_sizes": "5,5"}, "has a number twice"),
        ({"budget": "money"}, "Use steps or epochs"),
        ({"baseline": "ce"}, "`baseline=ce` is not compared. Use one of rail; raft"),
    ],
)
def test_settings_that_cannot_be_met(options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


def test_the_usual_baseline_is_the_first_that_is_trained():
    assert settings(methods="rail,ce,raft").baseline_label() == "ce"
    assert settings(methods="rail,zero_shot").baseline_label() == "rail"
    assert settings(methods="rail;raft:grid=1,9;ce", baseline="ce, RAIL").baseline_label() == "ce, RAIL"
