import torch
from hypothesis import given
from hypothesis import strategies as st

from raft_peft.data.batches import RegressionCollator, batches_by_length

ROWS = [
    {"input_ids": [5, 6, 7], "grid_token_ids": [[1], [2]], "label": 3},
    {"input_ids": [8], "grid_token_ids": [[1], [4]], "label": 0.1},
]


def test_pads_on_the_left_and_keeps_labels_as_floats():
    batch = RegressionCollator(pad_token_id=0)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["grid_token_ids"].tolist() == [[1, 2], [1, 4]]
    torch.testing.assert_close(batch["labels"], torch.tensor([3.0, 0.1]))


def test_a_pad_token_that_is_also_a_token_is_masked_only_as_padding():
    batch = RegressionCollator(pad_token_id=8)(ROWS)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_rounds_the_length_up():
    batch = RegressionCollator(pad_token_id=0, pad_to_multiple_of=4)(ROWS)
    assert batch["input_ids"].tolist() == [[0, 5, 6, 7], [0, 0, 0, 8]]
    assert batch["attention_mask"].sum().item() == 4


def test_rows_without_labels_make_a_batch_without():
    batch = RegressionCollator(pad_token_id=0)([{"input_ids": [1], "grid_token_ids": [[1], [2]]}])
    assert "labels" not in batch


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 9), st.integers(1, 120))
def test_every_prompt_once_and_within_the_limits(lengths, batch_size, batch_tokens):
    batches = list(batches_by_length(lengths, batch_size, batch_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or (len(batch) <= batch_size and len(batch) * longest <= batch_tokens)
    longest_of_each = [max(lengths[index] for index in batch) for batch in batches]
    assert longest_of_each == sorted(longest_of_each, reverse=True)


def test_ratings_are_padded_with_a_rating_of_the_row_and_no_share():
    """A row whose label is one number is one rating."""
    rated = [
        {**ROWS[0], "rating_values": [2.0, 3.0, 4.0], "rating_shares": [0.25, 0.5, 0.25]},
        {**ROWS[1], "rating_values": [5.0], "rating_shares": [1.0]},
        {**ROWS[1], "rating_values": None, "rating_shares": None},
    ]
    batch = RegressionCollator(pad_token_id=0)(rated)
    assert batch["rating_values"].dtype == batch["rating_shares"].dtype == torch.float32
    values = torch.tensor([[2.0, 3.0, 4.0], [5.0, 5.0, 5.0], [0.1, 0.1, 0.1]])
    torch.testing.assert_close(batch["rating_values"], values)
    assert batch["rating_shares"].tolist() == [[0.25, 0.5, 0.25], [1, 0, 0], [1, 0, 0]]
    assert "rating_values" not in RegressionCollator(pad_token_id=0)(rated[2:])
    assert "weights" not in batch


def test_weights_of_rows():
    weighted = [{**row, "weight": weight} for row, weight in zip(ROWS, (20, 1), strict=True)]
    weights = RegressionCollator(pad_token_id=0)(weighted)["weights"]
    assert weights.dtype == torch.float32 and weights.tolist() == [20, 1]
