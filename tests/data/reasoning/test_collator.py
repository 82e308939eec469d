"""Batches of rows with several reasonings."""

from raft_peft.data.reasoning.collator import ReasoningCollator

ROWS = [
    {
        "input_ids": [[5, 6, first] for first in range(10, 10 + count)],
        "grid_token_ids": [[[3], [4]]] * count,
        "reasoning_tokens": [1] * count,
        "label": float(count),
    }
    for count in (3, 1, 2)
]


def taken(collator, epoch):
    collator.epoch.fill_(epoch)
    batch = collator(ROWS)
    assert batch["labels"].tolist() == [3.0, 1.0, 2.0] and batch["row"].tolist() == [0, 1, 2]
    return batch["input_ids"][:, -1].tolist()


def test_one_reasoning_of_each_row_until_all_were_taken():
    collator = ReasoningCollator(pad_token_id=0).taking_one()
    epochs = [taken(collator, epoch) for epoch in range(6)]
    assert [one[0] for one in epochs[:3]] == [one[0] for one in epochs[3:]]
    for start in (0, 3):
        assert sorted(one[0] for one in epochs[start : start + 3]) == [10, 11, 12]
    assert [one[2] for one in epochs] in ([10, 11] * 3, [11, 10] * 3)
    assert {one[1] for one in epochs} == {10}
    # The seed decides where each row begins.
    others = {tuple(taken(ReasoningCollator(pad_token_id=0, seed=seed).taking_one(), 0)) for seed in range(20)}
    assert len(others) > 2


def test_all_reasonings_of_a_row_stand_together():
    batch = ReasoningCollator(pad_token_id=0)(ROWS)
    assert batch["row"].tolist() == [0, 0, 0, 1, 2, 2]
    assert batch["reasoning_mask"].tolist() == [[True]] * 6
