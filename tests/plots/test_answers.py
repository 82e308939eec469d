import numpy as np
import pytest

from raft_peft.plots import plot_answers


def test_each_question_has_a_panel_in_its_own_unit(tmp_path, figures):
    levels, prices = np.array([0, 1, 2]), np.array([0, 50, 100])
    plot_answers(tmp_path / "picture.png", {"tone": (levels, levels / 2), "price": (prices, prices)}, title="a model")
    tone, price = figures[0].axes
    assert (tone.get_title(), price.get_title()) == ("tone\nRMSE 0.65, Pearson 1.00", "price\nRMSE 0.00, Pearson 1.00")
    assert tone.get_ylim()[1] < 3 and price.get_ylim()[1] > 100
    assert tone.collections[0].get_offsets().tolist() == [[0, 0], [1, 0.5], [2, 1]]
    with pytest.raises(ValueError, match=r"`answers\['tone'\]\[1\]` has the shape \(2,\)"):
        plot_answers(tmp_path / "picture.png", {"tone": (levels, [1, 2])})
