import numpy as np
import pytest

from raft_peft.plots import plot_cost

RUNS = [([0, 10, 20], [3, 2, 1]), ([0, 20, 40, 60], [5, 4, 3, 2])]


def test_mean_curves_on_validation_and_each_run_on_the_test(tmp_path, figures):
    curves = {"raft": RUNS, "ce": [([0, 5], [3, 3])]}
    results = {"raft": ([20, 60], [1.1, 2.1]), "ce": ([5], [3.2])}
    plot_cost(tmp_path / "picture.png", curves, results, untrained={"rail": 4.0}, x_label="tokens")
    left, right = figures[0].axes
    # The mean of costs and of values at each evaluation that both runs have.
    assert left.lines[0].get_xydata().tolist() == [[0, 4], [15, 3], [30, 2]]
    assert right.collections[0].get_offsets().tolist() == [[20, 1.1], [60, 2.1]]
    assert right.lines[0].get_ydata() == [4.0, 4.0] and right.get_xlim() == (0, 63)
    assert left.get_ylim() == right.get_ylim() and left.get_ylabel() == "RMSE"
    assert [axis.get_xlabel() for axis in figures[0].axes] == ["tokens", "tokens"]
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["raft", "ce", "rail"]


@pytest.mark.parametrize(
    ("curves", "results", "message"),
    [
        ({}, {}, "nothing to draw"),
        ({"raft": []}, {}, r"curves\['raft'\]` has no runs"),
        ({"raft": [([0, 1], [1])]}, {}, r"curves\['raft'\]\[0\] values.*\(1,\).*\(2,\)"),
        ({"raft": RUNS}, {"raft": ([1], np.ones(2))}, r"results\['raft'\] values.*\(2,\).*\(1,\)"),
    ],
)
def test_refuses_what_does_not_fit(curves, results, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plot_cost(tmp_path / "picture.png", curves, results)
    assert not list(tmp_path.iterdir())
