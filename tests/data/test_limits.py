import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from raft_peft.data.limits import ModelLimits, _positions
from raft_peft.data.prompts import EncodedPrompt


def prompt(length, token_id=5, number=(6,)):
    return EncodedPrompt([token_id] * length, ((5,), number), was_cut=False)


def test_the_limits_of_a_model(tiny_llama):
    limits = ModelLimits.of(tiny_llama)
    assert limits.positions == tiny_llama.config.max_position_embeddings
    assert limits.tokens == tiny_llama.get_input_embeddings().weight.shape[0]


def test_learned_positions():
    config = GPT2Config(n_positions=8, vocab_size=16, n_embd=8, n_layer=1, n_head=1)
    assert ModelLimits.of(GPT2LMHeadModel(config)) == ModelLimits(positions=8, tokens=16)


def test_stretched_positions(tiny_llama):
    config = tiny_llama.config
    config.max_position_embeddings = 1000
    for rope, expected in (
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}, 4000),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 100}, 1000),
        ({"rope_type": "default"}, 1000),
        ({"rope_type": "dynamic", "factor": 2.0}, None),
    ):
        config.rope_parameters = rope
        assert _positions(config) == expected


def test_as_many_as_fit():
    limits = ModelLimits(positions=8, tokens=10)
    limits.check([prompt(8), prompt(7, number=(6, 7)), prompt(3, token_id=9)])
    ModelLimits().check([prompt(10_000, token_id=10_000)])


@pytest.mark.parametrize(
    ("too_much", "message"),
    [
        (prompt(9), "row 11: the prompt with its number has 9 tokens, and the model has 8 positions. Set `max_len"),
        (prompt(8, number=(6, 7)), "row 11: the prompt with its number has 9 tokens"),
        (prompt(3, token_id=10), "row 11: the token id 10 is beyond the model's 10 embeddings"),
        (prompt(3, number=(12,)), "row 11: the token id 12 is beyond"),
    ],
)
def test_what_does_not_fit_is_named_with_its_row(too_much, message):
    with pytest.raises(ValueError, match=message):
        ModelLimits(positions=8, tokens=10).check([prompt(3), too_much], first_row=10)
