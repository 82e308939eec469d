import pytest
from matplotlib import image
from matplotlib.colors import to_hex

from raft_peft.plots import plot_differences

RMSE = {"better": (-0.2, -0.3, -0.1), "unsure": (-0.1, -0.3, 0.1), "worse": (0.4, 0.2, 0.6)}
MORE_IS_BETTER = {"RMSE": False, "Pearson": True}


def test_a_panel_for_each_metric_and_a_colour_for_each_verdict(tmp_path, figures):
    pearson = {"better": (0.1, 0.05, 0.15), "worse": (-0.1, -0.2, -0.05)}
    plot_differences(
        tmp_path / "picture.png", {"RMSE": RMSE, "Pearson": pearson}, more_is_better=MORE_IS_BETTER, baseline="ce"
    )
    left, right = figures[0].axes
    zero, *intervals = left.lines
    assert zero.get_xdata() == [0, 0]
    # For each method its interval, and the difference as a point.
    assert [line.get_xdata().tolist() for line in intervals[::2]] == [[low, high] for _, low, high in RMSE.values()]
    colours = {to_hex(line.get_color()) for line in intervals}
    assert len(colours) == 3
    # Blue and red as there, where less is better.
    assert [line.get_color() for line in right.lines[1::2]] == [intervals[place].get_color() for place in (0, 4)]
    assert [label.get_text() for label in left.get_yticklabels()] == list(RMSE)
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first method stands above
    assert left.get_xlabel() == "RMSE minus that of ce\n(less is better)"
    assert right.get_xlabel().endswith("(more is better)")
    assert image.imread(tmp_path / "picture.png")[..., :3].std() > 0.02


def test_a_metric_that_nothing_has_is_left_out(tmp_path, figures):
    plot_differences(tmp_path / "picture.png", {"RMSE": RMSE, "CRPS": {}}, more_is_better=MORE_IS_BETTER, baseline="b")
    assert len(figures[0].axes) == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_differences(tmp_path / "none.png", {"CRPS": {}}, more_is_better={"CRPS": False}, baseline="b")
    with pytest.raises(ValueError, match=r"differences\['RMSE'\]\['a'\]` has the shape \(2,\)"):
        plot_differences(tmp_path / "none.png", {"RMSE": {"a": (1, 2)}}, more_is_better=MORE_IS_BETTER, baseline="b")
