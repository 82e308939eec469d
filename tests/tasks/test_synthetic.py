import numpy as np
import pytest

from raft_peft.tasks.synthetic import PROMPT, load_synthetic, normalized_original_1, original_1


def test_the_function_by_hand():
    # At 0: 0 + 10 sin 0 + 10 cos 0 = 10. At 50: 50 + 10 sin(2.5 pi) + 10 cos(3 pi) = 50 + 10 - 10.
    # At 100: 100 + 10 sin(5 pi) + 10 cos(6 pi) = 110.
    np.testing.assert_allclose(original_1(np.array([0, 50, 100])), [10, 50, 110], atol=1e-9)


def test_targets_fill_the_grid():
    y = normalized_original_1(np.linspace(0, 100, 5001))
    assert y.min() == pytest.approx(0, abs=1e-3)
    assert y.max() == pytest.approx(9, abs=1e-3)


def test_rows():
    rows = load_synthetic(200, seed=1)
    assert rows[0]["prompt"] == PROMPT.format(x=f"{rows[0]['x']:.2f}")
    assert rows["label"][:] == pytest.approx(normalized_original_1(np.array(rows["x"])).tolist(), abs=0.005 + 1e-9)
    assert load_synthetic(200, seed=2)["x"][:] != rows["x"][:]
