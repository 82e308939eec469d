from pathlib import Path

import pytest
import trl
from datasets import Dataset

from raft_peft import NumberGrid
from raft_peft.data.chats import render_chat, without_nulls
from raft_peft.data.prompts import PromptEncoder

CHAT = [{"role": "user", "content": "Rate tea"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Rate "}, {"type": "text", "text": "tea"}]}]
TRIMMED = "{% for m in messages %}{{ m['role'] + ':' + m['content'] | trim + '\n' }}{% endfor %}assistant:\n"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
)


def of_trl(name):
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def render(tokenizer, messages=CHAT, template=None, **row):
    if template is not None:
        tokenizer.chat_template = template
    return render_chat(tokenizer, messages, row)


@pytest.mark.parametrize("template", [None, TRIMMED], ids=["plus", "trim"])
def test_content_in_parts_is_one_text(tokenizer, template):
    expected = render(tokenizer, CHAT, template)
    assert render(tokenizer, PARTS, template) == expected
    assert "Rate tea" in expected.text


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
@pytest.mark.parametrize("messages", [CHAT, PARTS])
def test_templates_that_take_parts_alone(tokenizer, name, messages):
    assert "Rate tea" in render(tokenizer, messages, of_trl(name)).text


def test_an_answer_begun_with_a_template_that_takes_parts(tokenizer):
    chat = render(tokenizer, [*CHAT, {"role": "assistant", "content": "The score is"}], of_trl("smolvlm"))
    assert chat.text.endswith("Assistant: The score is")
    assert chat.begins_answer


def test_a_template_that_leaves_out_the_last_message(tokenizer):
    template = "{% for m in messages if m['role'] == 'system' %}{{ m['content'] }}{% endfor %}assistant:"
    with pytest.raises(ValueError, match="leaves out the text of the last message, 'Rate tea'"):
        render(tokenizer, [{"role": "system", "content": "Grade."}, *CHAT], template)


def test_templates_may_change_white_space_and_escape(tokenizer):
    assert render(tokenizer, [{"role": "user", "content": "  Rate \n tea "}], TRIMMED)
    escaping = "{{ messages[0]['content'] | tojson }}"
    assert render(tokenizer, [{"role": "user", "content": 'Rate "tea"'}], escaping).text == '"Rate \\"tea\\""'


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            [{"role": "system", "content": "Grade."}, *CHAT],
            "System role not supported. Put the system message's text",
        ),
        ([*CHAT, *CHAT], "Conversation roles must alternate. Join messages of one role"),
        ([{"role": "user", "content": None}], "Message 0, of the user, has no content"),
        ([{"role": "user", "content": 3}], "The content of message 0 is 3, and must be text"),
        ([{"from": "human", "value": "Rate tea"}], r"Message 0 has the keys \['from', 'value'\], and no `role`"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 0 has a part of the type 'image'"),
        ([{"role": "user", "content": [{"type": "image_url", "text": "x"}]}], "a part of the type 'image_url'"),
    ],
)
def test_messages_that_cannot_be_rendered_are_named_with_their_row(tokenizer, messages, message):
    tokenizer.chat_template = NO_SYSTEM
    with pytest.raises(ValueError, match=f"row 4: .*(?:{message})"):
        PromptEncoder(tokenizer, NumberGrid(range(5))).encode([{"prompt": messages}], first_row=4)


def test_a_template_may_fail_in_any_way(tokenizer):
    with pytest.raises(ValueError, match="The chat template refuses these messages"):
        render(tokenizer, CHAT, "{{ 1 + messages[0]['content'] }}")


def test_nulls_of_arrow_are_no_keys(tokenizer):
    """A key that one row alone has is null in all others of an Arrow table."""
    tokenizer.chat_template = (
        "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% if loud is defined %}{{ loud }}{% endif %}"
        "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    )
    rows = [
        {"prompt": CHAT, "tools": [{"name": "a", "strict": True}], "chat_template_kwargs": {"loud": "!"}},
        {"prompt": [{**CHAT[0], "name": "me"}], "tools": [{"name": "b"}], "chat_template_kwargs": {"quiet": 1}},
    ]
    through_arrow = list(Dataset.from_list(rows))
    assert through_arrow != rows
    for row, table_row in zip(rows, through_arrow, strict=True):
        expected = render_chat(tokenizer, row["prompt"], row)
        assert render_chat(tokenizer, table_row["prompt"], table_row) == expected
        assert "null" not in expected.text
    assert without_nulls({"a": None, "b": [{"c": None, "d": 0}], "e": [None]}) == {"b": [{"d": 0}], "e": [None]}


@pytest.mark.parametrize("empty", [None, "", "  ", float("nan")])
def test_what_a_table_holds_for_the_template(tokenizer, empty):
    tokenizer.chat_template = (
        "{{ messages[0]['content'] }}{% if loud %}!{% endif %}{% for t in tools or [] %} {{ t['name'] }}{% endfor %}"
    )
    row = {"tools": '[{"name": "search", "strict": null}]', "chat_template_kwargs": '{"loud": true}'}
    assert render(tokenizer, CHAT, **row).text == "Rate tea! search"
    assert render(tokenizer, CHAT, tools=empty, chat_template_kwargs=empty).text == "Rate tea"


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("tools", "search", "holds 'search', which is not JSON: Expecting value.*leave the cell empty"),
        ("tools", '{"name": "search"}', "must hold a list. Write"),
        ("chat_template_kwargs", "enable_thinking=False", r'is not JSON: .*Write {"enable_thinking": false}'),
        ("chat_template_kwargs", '["loud"]', "must hold names and values"),
        ("chat_template_kwargs", 3, "holds '3', and must hold names and values"),
    ],
)
def test_what_no_template_takes_is_named_with_its_row(tokenizer, column, value, reason):
    row = {"prompt": CHAT, column: value}
    with pytest.raises(ValueError, match=f"row 4: The column '{column}' .*{reason}"):
        PromptEncoder(tokenizer, NumberGrid(range(5))).encode([row], first_row=4)


def test_a_call_of_a_tool_has_no_content(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] or m['tool_calls'][0]['name'] }} {% endfor %}"
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "search"}]}
    assert render(tokenizer, [*CHAT, call, {"role": "tool", "content": "found"}]).text == "Rate tea search found "


class TestThoughts:
    thinking = ("qwen3_5_think", "qwen3_6", "deepseek_r1_distill")

    @pytest.mark.parametrize("name", thinking)
    def test_a_generation_prompt_that_opens_a_thought(self, tokenizer, name):
        assert render(tokenizer, CHAT, of_trl(name)).is_in_thought

    @pytest.mark.parametrize("name", ["qwen3", "qwen3_5_nothink", "llama3", "gemma3", "glm4moe"])
    def test_one_that_does_not(self, tokenizer, name):
        tokenizer.bos_token = "<eos>"
        assert not render(tokenizer, CHAT, of_trl(name)).is_in_thought

    def test_turned_off(self, tokenizer):
        row = {"chat_template_kwargs": {"enable_thinking": False}}
        assert not render(tokenizer, CHAT, of_trl("qwen3_5_think"), **row).is_in_thought

    @pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_6", "nemotron_3_nano"])
    def test_closed_by_the_message_that_the_remark_names(self, tokenizer, name):
        answer = {"role": "assistant", "content": "<think>\n\n</think>\n\nThe score is"}
        chat = render(tokenizer, [*CHAT, answer], of_trl(name), chat_template_kwargs={"enable_thinking": True})
        assert chat.text.endswith("The score is")
        assert not chat.is_in_thought

    def test_words_of_the_user_open_none(self, tokenizer):
        assert not render(tokenizer, [{"role": "user", "content": "What does <think> mean?"}]).is_in_thought
        assert render(tokenizer, [*CHAT, {"role": "assistant", "content": "<think>Well, the score is"}]).is_in_thought
