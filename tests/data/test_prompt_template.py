import pytest

from raft_peft.data.prompt_template import PromptTemplate


def test_a_text_is_filled_as_str_format_does():
    assert PromptTemplate("{{{a}}} {b:>3}")({"a": 1, "b": 2}) == "{1}   2"
    with pytest.raises(ValueError, match=r"^Row 3: The column 'b', which the prompt is made of, is empty. Fill it"):
        PromptTemplate("{a} {b}")({"a": 1, "b": None, "c": 2}, 3)
    with pytest.raises(ValueError, match=r"names the column 'b', and the row has the columns \['a', 'c'\]. Correct"):
        PromptTemplate("{a} {b}")({"a": 1, "c": 2})
    for text in ("no column", "{", "{0}", "{a.b}", "{}", [], [{"role": "user", "content": "none"}]):
        with pytest.raises(ValueError, match="prompt template"):
            PromptTemplate(text)


def test_chats():
    template = PromptTemplate.of("Review: {text}", system="You rate {kind}.")
    assert template.columns == ("kind", "text")
    assert template({"text": "Works.", "kind": "tools"}) == [
        {"role": "system", "content": "You rate tools."},
        {"role": "user", "content": "Review: Works."},
    ]
    written = PromptTemplate.of(None, chat=True)
    assert written({"prompt": "How many stars?"}) == [{"role": "user", "content": "How many stars?"}]
    for options in ({"chat": True}, {"system": "Be fair."}):
        with pytest.raises(ValueError, match=r"make a chat of the column `prompt`, .* \['text'\].*`prompt_template`"):
            PromptTemplate.of(None, **options)({"text": "a"})
    assert PromptTemplate.of(None) is None
    assert PromptTemplate.of('[{"role": "user", "content": "Rate {text}"}]')({"text": "a"})[0]["content"] == "Rate a"
    assert PromptTemplate.of("[{text}] Stars:")({"text": "a"}) == "[a] Stars:"


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        ([{"role": "user", "content": "{text}"}], {"chat": True}, "is a chat already. Leave out `chat`"),
        ([{"role": "user", "content": "{text}"}], {"system": "Be fair."}, "is a chat already"),
        ([{"role": "user"}], {}, "A message is"),
        ('[{"role": "user"', {}, "begins like a JSON list of messages, but is not one"),
    ],
)
def test_what_is_no_template(template, options, message):
    with pytest.raises(ValueError, match=message):
        PromptTemplate.of(template, **options)


def test_rows_that_it_applies_to():
    of_columns, of_prompt = PromptTemplate("{text} Stars:"), PromptTemplate.of(None, chat=True)
    chat = [{"role": "user", "content": "a"}]
    assert of_columns.applies_to({"text": "a", "prompt": "b"})
    assert not of_columns.applies_to({"prompt": "a Stars:"})
    assert of_prompt.applies_to({"prompt": "a"})
    assert not of_prompt.applies_to({"prompt": chat})
    with pytest.raises(ValueError, match="takes the column 'prompt' as a text"):
        of_prompt({"prompt": chat})
    assert of_columns.write({"text": "a", "label": 1.0}) == {"text": "a", "label": 1.0, "prompt": "a Stars:"}
