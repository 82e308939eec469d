"""How a server is asked, against a connection whose answers are written here."""

import math

import pytest

from raft_peft.data.prompts import EncodedPrompt
from raft_peft.prediction.remote.completions_api import NextToken, RefusedError, ServerError
from raft_peft.prediction.remote.dialects import Dialect, SpokenDialect

PROMPT = EncodedPrompt([1, 2], grid_token_ids=((5,), (6,), (7,)), was_cut=False)


class Connection:
    """Gives answers in order, and keeps how it was asked: the most probable tokens, and the ids."""

    shown = "http://host/v1/completions"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def next_token(self, prompt_ids, top, **fields):
        self.asked.append((top, fields.get("logprob_token_ids")))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        probs = dict.fromkeys(answer, 1 / 16)
        return NextToken.of({token: math.log(p) for token, p in probs.items()}, drawn="")


def never(answer):
    return False


def test_the_first_dialect_that_the_server_speaks():
    connection = Connection(RefusedError("no such field"), [5, 6, 7])
    SpokenDialect.found_with(connection, PROMPT, tokenizer=None).ask(other := Connection([5, 6, 7]), PROMPT, never)
    assert connection.asked == [(1, [5, 6, 7]), (3, [5, 6, 7])]
    assert other.asked == [(3, [5, 6, 7])]


def test_the_last_refusal_is_the_one_that_is_shown():
    refusals = [RefusedError(f"refusal {number}") for number in range(5)]
    with pytest.raises(RefusedError, match="refusal 4"):
        SpokenDialect.found_with(Connection(*refusals), PROMPT, tokenizer=None)


def test_numbers_that_were_asked_for_and_are_missing():
    dialect = SpokenDialect(Dialect(ids_at_once=128, top=1), token_texts=None)
    with pytest.raises(ServerError, match=r"http://host/v1/completions returned no .* tokens \[6\].*several servers"):
        dialect.ask(Connection([5, 7]), PROMPT, never)


def test_a_server_that_names_tokens_in_another_way_than_before():
    dialect = SpokenDialect(Dialect(top=20), token_texts=None)
    with pytest.raises(ServerError, match=r"names tokens by their texts; before, it .* by their ids.*several servers"):
        dialect.ask(Connection(["5", "6"]), PROMPT, never)


def test_more_tokens_until_they_suffice():
    dialect = SpokenDialect(Dialect(top=20, extensible=True), token_texts=None)
    connection = Connection([5, 8], [5, 8, 7], [5, 8, 7, 6])
    answer = dialect.ask(connection, PROMPT, lambda answer: -math.inf not in answer.log_probs)
    assert [top for top, _ in connection.asked] == [20, 200, 2000]
    assert answer.log_probs == [math.log(1 / 16)] * 3
    assert answer.rest == pytest.approx(12 / 16)
    dialect.ask(again := Connection([5, 6, 7]), PROMPT, lambda answer: True)
    assert [top for top, _ in again.asked] == [20]


@pytest.mark.parametrize("limit", [[5, 8], RefusedError("at most 20")], ids=["fewer", "refused"])
def test_the_most_that_a_server_gives_is_kept_in_mind(limit):
    dialect = SpokenDialect(Dialect(top=20, extensible=True), token_texts=None)
    first = dialect.ask(connection := Connection([5, 8], limit), PROMPT, never)
    assert [top for top, _ in connection.asked] == [20, 200]
    assert first.log_probs == [math.log(1 / 16), -math.inf, -math.inf]
    dialect.ask(connection := Connection([5, 8]), PROMPT, never)
    assert [top for top, _ in connection.asked] == [20]
