import numpy as np
import pytest
from matplotlib import image

from raft_peft.plots import plot_predictions

TARGET = np.linspace(0, 5, 20)


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
