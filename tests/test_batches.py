"""Batches by length: every prompt once, within both limits."""

from hypothesis import given
from hypothesis import strategies as st

from raft_peft.batches import batches_by_length


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 9), st.integers(1, 120))
def test_every_prompt_once_and_within_the_limits(lengths, batch_size, batch_tokens):
    batches = list(batches_by_length(lengths, batch_size, batch_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or (len(batch) <= batch_size and len(batch) * longest <= batch_tokens)
    longest_of_each = [max(lengths[index] for index in batch) for batch in batches]
    assert longest_of_each == sorted(longest_of_each, reverse=True)
