import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib import image

from raft_peft.plots import plot_curves, plot_distributions, plot_entropy_change, plot_predictions

TARGET = np.linspace(0, 5, 20)
GRID = np.arange(6)
EVEN = np.full((20, 6), 1 / 12)  # half of the probability lies off the grid
SURE = np.eye(6)[TARGET.round().astype(int)]
STEPS = [0, 10, 20]
TWELVE = [f"method:option={n}" for n in range(12)]


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("options", [{}, {"x": np.arange(20)[::-1], "x_label": "input", "title": "A task"}])
def test_draws_one_panel_for_each(tmp_path, options):
    pictures = {}
    for name, panels in (("one", {"after": TARGET + 1}), ("two", {"before": TARGET * 0, "after": TARGET + 1})):
        with np.errstate(all="ignore"), pytest.warns(UserWarning) if "before" in panels else nothing():
            plot_predictions(tmp_path / f"{name}.png", TARGET, panels, **options)
        pictures[name] = image.imread(tmp_path / f"{name}.png")
    assert pictures["two"].shape[1] == 2 * pictures["one"].shape[1]
    assert pictures["one"][..., :3].std() > 0.05  # not a blank page


def nothing():
    from contextlib import nullcontext

    return nullcontext()


@pytest.mark.parametrize(("panels", "across", "down"), [(4, 4, 1), (5, 3, 2), (7, 4, 2), (12, 4, 3)])
def test_more_than_four_panels_go_to_further_rows(panels, across, down, tmp_path, figures):
    plot_predictions(tmp_path / "picture.png", TARGET, dict.fromkeys(TWELVE[:panels], TARGET + 1))
    height, width, _ = image.imread(tmp_path / "picture.png").shape
    assert (width, height) == (across * 552, down * 528)
    assert [title.split("\n")[0] for title in titles(figures[0])] == TWELVE[:panels]
    named = [bool(axis.get_ylabel()) for axis in figures[0].axes]
    assert named == [index % across == 0 for index in range(panels)]
    assert sum(bool(axis.get_xlabel()) for axis in figures[0].axes) == min(panels, across)


def test_wild_predictions_do_not_flatten_the_others(tmp_path, figures):
    wild = TARGET.copy()
    wild[[3, 4, 5]] = 2024, -np.inf, np.nan
    plot_predictions(tmp_path / "picture.png", TARGET, {"calm": TARGET, "wild": wild})
    calm, other = figures[0].axes
    assert calm.get_ylim() == other.get_ylim() and -2 < calm.get_ylim()[0] < 0 and 5 < calm.get_ylim()[1] < 7
    assert other.collections[1].get_offsets().tolist() == [[TARGET[3], 6.25], [TARGET[4], -1.25]]
    assert [text.get_text() for text in calm.get_legend().get_texts()] == ["truth", "prediction", "further off"]


def test_curves_are_means_over_the_common_steps_with_a_band(tmp_path, figures):
    runs = [([0, 10, 20], [3, 2, 1]), ([20, 0, 15], [2, 5, 9])]
    plot_curves(tmp_path / "picture.png", {"raft": runs}, y_label="RMSE", title="A task")
    (axis,) = figures[0].axes
    assert axis.lines[0].get_xydata().tolist() == [[0, 4], [20, 1.5]]
    edges = {tuple(point) for point in axis.collections[0].get_paths()[0].vertices.tolist()}
    assert edges == {(0, 3), (0, 5), (20, 1), (20, 2)}
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_yscale()) == ("step", "RMSE", "linear")
    assert image.imread(tmp_path / "picture.png")[..., :3].std() > 0.05


def test_twelve_curves_can_be_told_apart_and_have_their_legend_outside(tmp_path, figures):
    plot_curves(tmp_path / "picture.png", {name: [(STEPS, [3, 2, n / 12])] for n, name in enumerate(TWELVE)})
    (axis,) = figures[0].axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines}) == 12
    assert legend_of(figures[0]) == TWELVE
    assert figures[0].legends[0].get_window_extent().x0 > axis.get_window_extent().x1


def test_curves_that_differ_by_orders_of_magnitude_are_drawn_on_a_logarithmic_axis(tmp_path, figures):
    plot_curves(tmp_path / "picture.png", {"raft": [(STEPS, [2, 1, 0.5])], "diverged": [(STEPS, [8, 200, np.nan])]})
    (axis,) = figures[0].axes
    assert axis.get_yscale() == "log"
    assert {"0.5", "1", "2", "100"} <= {label.get_text() for label in axis.get_yticklabels()}


@pytest.mark.parametrize("values", [[1, 1, 1], [np.nan] * 3, [np.nan, 1, np.inf], [0, 0, 0], [-1, 100, 0]])
def test_odd_curves_are_drawn(values, tmp_path):
    plot_curves(tmp_path / "picture.png", {"one": [(STEPS, values)], "two": [(STEPS, values)] * 2})
    assert image.imread(tmp_path / "picture.png").ndim == 3


def test_distributions_of_rows_spread_over_the_targets(tmp_path, figures):
    shuffled = np.random.default_rng(0).permutation(20)
    plot_distributions(
        tmp_path / "picture.png", GRID, EVEN[shuffled], SURE[shuffled], TARGET[shuffled], rows=3, title="A task"
    )
    assert titles(figures[0]) == [
        f"target {target}\non the grid 0.50 before, 1.00 after" for target in ("0", "2.632", "5")
    ]
    before, after = ([bar.get_height() for bar in bars] for bars in figures[0].axes[1].containers)
    assert before == pytest.approx([1 / 12] * 6) and after == [0, 0, 0, 1, 0, 0]
    assert figures[0].axes[1].lines[0].get_xdata()[0] == pytest.approx(2.632, abs=1e-3)
    assert legend_of(figures[0]) == ["before", "after", "target"]
    assert image.imread(tmp_path / "picture.png")[..., :3].std() > 0.05


def test_names_of_ones_own(tmp_path, figures):
    names = ("zero-shot", "tuned")
    plot_distributions(tmp_path / "distributions.png", GRID, EVEN, SURE, TARGET, rows=1, labels=names)
    plot_predictions(tmp_path / "predictions.png", TARGET, {"all": TARGET}, labels=("rating", "score"))
    plot_entropy_change(tmp_path / "entropy.png", TARGET, {"raft": -TARGET}, labels=names)
    plot_curves(tmp_path / "curves.png", {"raft": [(STEPS, [3, 2, 1])]}, x_label="epoch")
    assert titles(figures[0]) == ["target 0\non the grid 0.50 zero-shot, 1.00 tuned"]
    assert legend_of(figures[0]) == [*names, "target"]
    assert [figures[1].axes[0].get_xlabel(), figures[1].axes[0].get_ylabel()] == ["rating", "score"]
    assert figures[2].axes[0].get_xlabel() == "entropy tuned minus zero-shot, nats\n(zero-shot: 2.50 on average)"
    assert figures[3].axes[0].get_xlabel() == "epoch"


def test_tensors_are_drawn_as_arrays_are(tmp_path):
    tensors = [torch.from_numpy(array) for array in (GRID, EVEN, SURE, TARGET)]
    plot_distributions(tmp_path / "distributions.png", *tensors)
    plot_predictions(tmp_path / "predictions.png", tensors[-1], {"same": tensors[-1]})
    plot_entropy_change(tmp_path / "entropy.png", tensors[-1], {"less": -tensors[-1]})


def test_the_grid_is_drawn_in_order_and_evenly(tmp_path, figures):
    probs = np.array([[0.1, 0.2, 0.7]])
    plot_distributions(tmp_path / "picture.png", [100, 1, 10], probs, probs, [5.5])
    (axis,) = figures[0].axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "10", "100"]
    assert [bar.get_height() for bar in axis.containers[0]] == [0.2, 0.7, 0.1]
    assert axis.lines[0].get_xdata()[0] == 0.5  # halfway from 1 to 10


def test_one_number_has_the_target_as_its_probability(tmp_path, figures):
    plot_distributions(tmp_path / "picture.png", [5], [[0.2]], [[0.7]], [4])
    assert figures[0].axes[0].lines[0].get_ydata()[0] == 0.8  # where 5 p is 4
    plot_entropy_change(tmp_path / "entropy.png", [0.0, 0.0], {"raft": [0.0, 0.0]})


def test_a_long_grid_gets_few_ticks(tmp_path, figures):
    probs = np.full((2, 101), 0.01)
    plot_distributions(tmp_path / "picture.png", np.linspace(0, 10, 101), probs, probs, [-3, 12])
    assert [label.get_text() for label in figures[0].axes[0].get_xticklabels()] == [f"{n}" for n in range(11)]
    assert [axis.lines[0].get_xdata()[0] for axis in figures[0].axes] == [-0.5, 100.5]


@pytest.mark.parametrize("methods", [1, 12])
def test_entropy_changes_have_common_bins_a_line_at_0_and_their_mean(methods, tmp_path, figures):
    changes = {name: np.linspace(-1, 0.1 * n, 20) for n, name in enumerate(TWELVE[:methods])}
    plot_entropy_change(tmp_path / "picture.png", np.ones(20), changes, title="A task")
    axes = figures[0].axes
    assert titles(figures[0]) == [f"{name}\nmean {change.mean():+.2f}" for name, change in changes.items()]
    assert len({tuple(bar.get_x() for bar in axis.patches) for axis in axes}) == 1
    assert all(sum(bar.get_height() for bar in axis.patches) == 20 for axis in axes)
    assert all(axis.lines[0].get_xdata() == [0, 0] for axis in axes)
    assert legend_of(figures[0]) == ["no change", "mean"]
    assert "1.00 on average" in axes[-1].get_xlabel()
    assert image.imread(tmp_path / "picture.png")[..., :3].std() > 0.05


@pytest.mark.filterwarnings("ignore:.*correlation is undefined")
@pytest.mark.parametrize("odd", [np.full(20, np.nan), np.full(20, 2.0), np.where(TARGET > 2, np.nan, TARGET)])
def test_odd_numbers_are_drawn(odd, tmp_path):
    plot_predictions(tmp_path / "predictions.png", TARGET, {"odd": odd})
    plot_predictions(tmp_path / "targets.png", odd, {"usual": TARGET}, x=odd)
    plot_distributions(tmp_path / "distributions.png", GRID, EVEN * odd[:, None], SURE, odd)
    plot_entropy_change(tmp_path / "entropy.png", odd, {"odd": odd, "usual": TARGET})
    for picture in tmp_path.glob("*.png"):
        assert image.imread(picture).ndim == 3
    assert len(list(tmp_path.glob("*.png"))) == 4


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda path: plot_predictions(path, TARGET, {"short": TARGET[:3]}),
            r"predictions\['short'\].*\(3,\).*\(20,\)",
        ),
        (lambda path: plot_predictions(path, TARGET, {"raft": TARGET}, x=[1]), r"`x` has the shape \(1,\).*\(20,\)"),
        (lambda path: plot_predictions(path, TARGET[:, None], {"raft": TARGET}), r"`target` has the shape \(20, 1\)"),
        (lambda path: plot_predictions(path, TARGET, {}), "nothing to draw"),
        (lambda path: plot_curves(path, {}), "nothing to draw"),
        (lambda path: plot_curves(path, {"raft": []}), r"curves\['raft'\]` has no runs"),
        (lambda path: plot_curves(path, {"raft": [(STEPS, [1])]}), r"curves\['raft'\]\[0\] values.*\(1,\).*\(3,\)"),
        (lambda path: plot_curves(path, {"raft": [([1], [1]), ([2], [1])]}), "'raft' have no step in common"),
        (lambda path: plot_distributions(path, GRID, EVEN[:, :3], SURE, TARGET), r"`before`.*\(20, 3\).*\(20, 6\)"),
        (lambda path: plot_distributions(path, GRID, EVEN, SURE[:4], TARGET), r"`after`.*\(4, 6\).*\(20, 6\)"),
        (lambda path: plot_distributions(path, GRID, EVEN[:0], SURE[:0], []), "nothing to draw"),
        (lambda path: plot_entropy_change(path, TARGET, {"raft": [1]}), r"changes\['raft'\].*\(1,\).*\(20,\)"),
        (lambda path: plot_entropy_change(path, TARGET, {}), "nothing to draw"),
    ],
)
def test_refuses_arrays_that_do_not_fit(draw, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_loads_matplotlib_late_and_leaves_its_backend_alone(tmp_path):
    program = (
        "import sys, raft_peft.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.plot_curves(sys.argv[1], {'raft': [([0, 1], [2, 1])]})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "picture.png")], check=True)
    assert image.imread(tmp_path / "picture.png").ndim == 3
