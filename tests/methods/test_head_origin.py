import pytest
import torch

from raft_peft import NumberGrid
from raft_peft.methods import MethodSettings
from raft_peft.methods.head_origin import head_origin, load_parameters, new_head, origin_difference, state_to_save

GRID = NumberGrid(range(5))


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        ({"method": "pooled"}, {"method": "pooled", "pooling": "max"}, "pooling 'mean' and not 'max'"),
        ({"method": "special_token"}, {"method": "special_token", "special_token": "<pad>"}, "special_token '<eos>'"),
        ({"method": "logits_mlp", "mlp_width": 8}, {"method": "logits_mlp"}, "mlp_width 8 and not 64"),
        ({"method": "pooled"}, {"method": "special_token"}, "method 'pooled' and not 'special_token'"),
        ({"method": "special_token"}, {"method": "special_token", "special_token": "<eos>"}, None),
        # The head is the same however its prompts are read.
        ({"method": "pooled"}, {"method": "pooled", "attention": "bidirectional"}, None),
    ],
)
def test_settings_tell_heads_apart(one, two, words, tokenizer):
    origins = [head_origin(MethodSettings(**settings), GRID, tokenizer) for settings in (one, two)]
    difference = origin_difference(*origins)
    assert difference is None if words is None else words in difference


def test_grids_and_heads_of_ones_own_tell_heads_apart(tokenizer):
    settings = MethodSettings(method="learnable_raft")
    origin = head_origin(settings, GRID, tokenizer)
    wide = head_origin(settings, NumberGrid({10.0 * value: str(value) for value in range(5)}), tokenizer)
    assert origin_difference(origin, wide) == "grid [0, 1, 2, 3, 4] and not [0, 1, 2, 3, 4]"
    own = head_origin(settings, GRID, tokenizer, own_head="MyHead")
    assert "MyHead" in origin_difference(origin, own)
    assert origin_difference(own, own) is None


def test_a_head_is_new_until_it_is_loaded(tiny_llama, tokenizer, tmp_path):
    from safetensors.torch import save_file

    head = new_head(tiny_llama, tokenizer, GRID, MethodSettings(method="special_token"), None)
    assert head.is_new
    save_file({"bias": torch.tensor([7.0])}, tmp_path / "head.safetensors")
    load_parameters(head, tmp_path / "head.safetensors", "special_token")
    assert not head.is_new
    assert head.bias.item() == 7


def test_what_is_saved_is_the_head_that_is_given_and_nothing_of_another(tiny_llama, tokenizer):
    own, other = (
        new_head(tiny_llama, tokenizer, GRID, MethodSettings(method="special_token"), None) for _ in range(2)
    )
    grid_head = new_head(tiny_llama, tokenizer, GRID, MethodSettings(), None)
    assert state_to_save(tiny_llama, grid_head, None) == ({}, None)
    tiny_llama.regression_head = other
    with torch.no_grad():
        own.bias.fill_(5)
    parameters, rest = state_to_save(tiny_llama, own, None)
    assert parameters["bias"].item() == 5
    assert rest.keys() == {name for name in tiny_llama.state_dict() if "regression_head" not in name}
    assert state_to_save(tiny_llama, grid_head, None)[0] == {}
