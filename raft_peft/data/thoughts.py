"""Thinking models: whether a prompt ends inside a thought, where no answer is expected."""

from __future__ import annotations

import re

# Of Qwen, DeepSeek, GLM and others; Seed; Magistral; Kimi; Gemma 4; gpt-oss.
_OPENING = re.compile(
    r"<\|?(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning)\|?>|\[THINK\]|◁think▷"
    r"|<\|channel>thought|<\|channel\|>analysis<\|message\|>",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"</\|?(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning)\|?>|<\|/(?:think|thinking|thought|reasoning)\|>"
    r"|\[/THINK\]|◁/think▷|<channel\|>|<\|end\|>",
    re.IGNORECASE,
)

# Characters of an opening, with the white space behind it.
_LONGEST_MARK = 80

CURE = (
    'Turn thinking off in each row, chat_template_kwargs={"enable_thinking": False}, or end the chat with an '
    'assistant message that closes the thought and begins the answer, such as {"role": "assistant", "content": '
    '"<think>\\n\\n</think>\\n\\nThe score is"}.'
)


def is_in_thought(text: str, written_before: str = "") -> bool:
    """Whether a prompt ends inside an open thought.

    >>> is_in_thought("user: Rate tea\\nassistant:\\n<think>\\n"), is_in_thought("assistant: <think>\\n\\n</think>")
    (True, False)

    Args:
        text: the prompt as text.
        written_before: the last text of the prompt that its author wrote before the answer, in which such marks are
            words like any others; without it, a thought is open where the prompt ends in its mark.
    """
    author = written_before.strip()
    if author and author in text:
        answer = text.rpartition(author)[2]
        openings = list(_OPENING.finditer(answer))
        return bool(openings) and _CLOSING.search(answer, openings[-1].end()) is None
    end = text[-_LONGEST_MARK:].rstrip()
    return any(opening.end() == len(end) for opening in _OPENING.finditer(end))


def closing_mark_of(text: str) -> str | None:
    """The mark that closes a thought, where a text begins with one.

    >>> closing_mark_of("\\n</think>\\n\\nScore: "), closing_mark_of("\\n[RESULT] ")
    ('</think>', None)
    """
    found = _CLOSING.match(text.lstrip())
    return None if found is None else found.group()


def is_open_behind(text: str, *, opened: bool) -> bool:
    """Whether a thought is open behind a text.

    >>> is_open_behind("It fits.</think> Score:", opened=True), is_open_behind("It fits. Score:", opened=True)
    (False, True)

    Args:
        text: what a model has written.
        opened: whether a thought was open before it.
    """
    marks = [
        *((one.start(), True) for one in _OPENING.finditer(text)),
        *((one.start(), False) for one in _CLOSING.finditer(text)),
    ]
    return max(marks)[1] if marks else opened
