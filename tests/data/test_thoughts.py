import pytest

from raft_peft.data.thoughts import is_in_thought


@pytest.mark.parametrize(
    "mark",
    [
        "<think>",
        "<thinking>",
        "<seed:think>",
        "[THINK]",
        "◁think▷",
        "<|channel>thought",
        "<|channel|>analysis<|message|>",
    ],
)
@pytest.mark.parametrize("behind", ["", "\n", "\n\n  "])
def test_marks_at_the_end(mark, behind):
    assert is_in_thought(f"Rate tea{mark}{behind}")
    assert not is_in_thought(f"Rate tea{mark}{behind}. The score is")


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"), ("<|channel>thought", "<channel|>")],
)
def test_behind_what_the_author_wrote(opening, closing):
    assert is_in_thought(f"Rate tea {opening} hmm", "Rate tea")
    assert not is_in_thought(f"Rate tea {opening} hmm {closing} so", "Rate tea")
    assert is_in_thought(f"Rate tea {opening} hmm {closing} so {opening}", "Rate tea")
    assert not is_in_thought(f"{opening} Rate tea: ", f"{opening} Rate tea")
