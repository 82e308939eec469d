import pytest

from raft_peft.data.prompt_form import PromptForm, warn_of_another_template
from raft_peft.data.prompt_shape import fits_shape, prompt_shape
from raft_peft.data.prompt_template import PromptTemplate

SHAPE = "Review: ... Stars:"
CHAT = [{"role": "system", "content": "..."}, {"role": "user", "content": "Rate ..."}]


def chat(text, role="user"):
    return [{"role": "system", "content": "Any."}, {"role": role, "content": text}]


@pytest.mark.parametrize(
    ("prompt", "shape", "fits"),
    [
        ("Review: Good. Stars:", SHAPE, True),
        ("Review: Good. Stars: ", SHAPE, True),
        ("Review: Good. Rating:", SHAPE, False),
        ("Good. Stars:", SHAPE, False),
        (chat("Review: Good. Stars:"), SHAPE, False),
        (chat("Rate this."), CHAT, True),
        (chat("Grade this."), CHAT, False),
        (chat("Rate this.", role="assistant"), CHAT, False),
        (chat("Rate this.")[1:], CHAT, False),
        ("Rate this.", CHAT, False),
        ("anything", "...", True),
    ],
)
def test_prompts_that_have_the_shape_of_others(prompt, shape, fits):
    assert fits_shape(prompt, shape) is fits


def test_every_prompt_has_the_shape_of_all():
    prompts = [f"Review: It has {number} parts. Stars:" for number in range(12)]
    assert all(fits_shape(prompt, prompt_shape(prompts)) for prompt in prompts)
    chats = [chat(prompt) for prompt in prompts]
    assert all(fits_shape(one, prompt_shape(chats)) for one in chats)


def test_other_prompts_than_in_training_are_said(caplog):
    form = PromptForm(shape=SHAPE)
    form.warn_of_others([{"prompt": "Review: a Stars:"}, {"prompt": "b"}, {"input_ids": [1]}])
    PromptForm().warn_of_others([{"prompt": "b"}])
    form.warn_of_others([{"input_ids": [1]}])
    assert not caplog.records
    form.warn_of_others([{"prompt": "Review: a Stars:"}, {"prompt": "b"}, {"prompt": "c"}])
    assert "2 of the first 3 prompts do not look like those of training" in caplog.text
    assert "'Review: ... Stars:'; here one is 'b'" in caplog.text


def test_rows_are_written_by_the_template_where_they_have_its_columns():
    form = PromptForm(PromptTemplate("Review: {text} Stars:"))
    rows = list(form.rows([{"text": "a"}, "b", {"prompt": "c"}]))
    assert [row["prompt"] for row in rows] == ["Review: a Stars:", "b", "c"]
    with pytest.raises(ValueError, match=r"^Row 5: The column 'text', which the prompt is made of, is empty"):
        list(form.rows([{"text": "a"}, {"text": None}], first_row=4))


def test_another_template_than_in_training_is_said(caplog):
    for asked, saved in ((None, "{text} Stars:"), ("{text} Stars:", None), ("{text} Stars:", "{text} Stars:")):
        warn_of_another_template(asked, saved)
    assert not caplog.records
    warn_of_another_template("{text}:", "{text} Stars:")
    assert "the prompt template '{text} Stars:', and not with '{text}:'" in caplog.text
