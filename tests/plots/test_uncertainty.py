"""The picture of distributions that can be believed, and the numbers in it."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from raft_peft.plots import plot_uncertainty
from raft_peft.plots.uncertainty import pit_histogram


def test_places_of_labels_by_hand():
    # Of 0.25, 0.5, 0.25 the middle number takes the places from 0.25 to 0.75: half of the third bin and of the eighth.
    found = pit_histogram(np.array([[0.25, 0.75, 1.0]]), np.array([[0.0, 1.0, 0.0]]))
    np.testing.assert_allclose(found, [0, 0, 1, 2, 2, 2, 2, 1, 0, 0])
    # Half on the first number and half on the last of a row, and a number without any probability of its own.
    found = pit_histogram(np.array([[0.25, 0.75, 1.0], [1.0, 1.0, 1.0]]), np.array([[0.5, 0, 0.5], [0, 0, 1]]))
    assert found.mean() == pytest.approx(1)
    np.testing.assert_allclose(found[:3], [1, 1, 0.5])


def test_places_are_flat_where_labels_are_drawn_from_their_distributions():
    random = np.random.default_rng(0)
    probs = random.dirichlet(np.ones(5), size=20_000)
    labels = (random.random((20_000, 1)) > probs.cumsum(-1)).sum(-1)
    found = pit_histogram(probs.cumsum(-1), np.eye(5)[labels.clip(max=4)])
    np.testing.assert_allclose(found, 1, atol=0.05)


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: figures.append(self) or save(self, *args, **kwargs)
    )
    return figures


def test_three_panels_of_an_unsorted_grid(drawn, tmp_path):
    values, probs, shares = [3, 1, 2], [[0.2, 0.1, 0.2], [0.1, 0.3, 0.1]], [[1, 0, 0], [0, 1, 0]]
    plot_uncertainty(tmp_path / "a.png", values, probs, shares, widths=[1, 2], errors=[0.5, 0.1], title="stars")
    (figure,) = drawn
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["reliability", "PIT histogram", "interval width and error"]
    # P(Y <= 1) is 0.2 and 0.6, P(Y <= 2) is 0.6 and 0.8; the labels are 3 and 1.
    np.testing.assert_allclose(figure.axes[0].lines[1].get_xydata(), [[0.2, 0], [0.6, 0.5], [0.8, 1]])
    assert figure.get_suptitle() == "stars"


@pytest.mark.parametrize(
    ("widths", "errors", "message"), [([1], [0.5, 0.1], "`widths` has the shape"), ([], [], "has the shape")]
)
def test_shapes_that_do_not_fit(widths, errors, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plot_uncertainty(tmp_path / "a.png", [1, 2], [[0.5, 0.5]] * 2, [[1, 0]] * 2, widths=widths, errors=errors)
