"""What the forward need not do where few columns are read: the same numbers and gradients with less work."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.training import make
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from raft_peft.forward.final_position import read_final_position
from raft_peft.forward.last_layer import few_columns
from raft_peft.forward.layouts import flat_rows, padded_rows

# They begin alike, so that rows laid end to end have a prefix.
ROWS = [[3, 4, 5, 6, 7, 8, 9, 10], [3, 4, 13], [3, 4, 5, 14, 15]]
TOKENS = [11, 12]


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4)).eval()


@pytest.fixture
def experts():
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        output_router_logits=True,
    )
    return Qwen3MoeForCausalLM(config).eval()


def batch():
    length = max(map(len, ROWS))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in ROWS])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ROWS])
    return ids, mask


def watch(module):
    """The columns that it is run on, at each call."""
    columns = []
    inner = next(one for one in module.modules() if not list(one.children()))
    own = inner.forward

    def forward(states):
        columns.append(states.shape[1])
        return own(states)

    inner.forward = forward
    return columns


def last_layer(model):
    backbone = model.get_decoder()
    return getattr(backbone, "layers", None)[-1] if hasattr(backbone, "layers") else backbone.h[-1]


def gradients(model):
    found = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    return found


NORMS = ["post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
SPARED = {
    "tiny_llama": ["mlp", "self_attn.q_proj", "self_attn.o_proj", NORMS[0]],
    "tiny_gemma2": ["mlp", "self_attn.q_proj", "self_attn.o_proj", *NORMS],
    "gpt2": ["mlp"],
}


@pytest.mark.parametrize("layout", [padded_rows, flat_rows])
@pytest.mark.parametrize("name", SPARED)
def test_what_is_done_to_each_column_alone_is_done_to_those_that_are_read(name, layout, request):
    model = request.getfixturevalue(name)
    by_hand = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in ROWS])
    by_hand.log_softmax(-1)[:, TOKENS].square().sum().backward()
    expected = gradients(model)

    spared = [watch(last_layer(model).get_submodule(part)) for part in SPARED[name]]
    if hasattr(model.get_decoder(), "norm"):
        spared.append(watch(model.get_decoder().norm))
    if layout is flat_rows:
        model.config._attn_implementation = "flat_" + model.config._attn_implementation
    logits = read_final_position(model, *batch(), layout=layout).logits
    assert spared == [[1 if layout is padded_rows else len(ROWS)]] * len(spared)
    torch.testing.assert_close(logits, by_hand, atol=1e-4, rtol=1e-5)
    logits.log_softmax(-1)[:, TOKENS].square().sum().backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for parameter, gradient in found.items():
        torch.testing.assert_close(gradient, expected[parameter], atol=1e-3, rtol=1e-3)


def test_under_lora_they_are_too(tiny_llama):
    model = get_peft_model(tiny_llama, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    spared = [watch(last_layer(model.base_model.model).get_submodule(part)) for part in SPARED["tiny_llama"]]
    ids, mask = batch()
    expected = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in ROWS])
    for columns in spared:
        columns.clear()
    torch.testing.assert_close(read_final_position(model, ids, mask).logits, expected, atol=1e-4, rtol=1e-4)
    assert spared == [[1]] * len(spared)


def test_queries_that_an_attention_may_mix_are_taken_of_all_columns(tiny_llama):
    attention = last_layer(tiny_llama).self_attn
    attention.q_conv1d = torch.nn.Identity()
    queries, mlp = watch(attention.q_proj), watch(last_layer(tiny_llama).mlp)
    ids, mask = batch()
    read_final_position(tiny_llama, ids, mask)
    assert (queries, mlp) == ([ids.shape[1]], [1])


def test_what_is_called_more_than_once_runs_on_all_columns(tiny_llama):
    ids, mask = batch()
    norm = tiny_llama.model.norm
    norm.register_forward_hook(lambda module, _, output: module.forward(output))
    columns, mlp = watch(norm), watch(last_layer(tiny_llama).mlp)
    expected = torch.stack([tiny_llama(torch.tensor([row])).logits[0, -1] for row in ROWS])
    for runs in (2, 1):  # the first shows it
        columns.clear()
        mlp.clear()
        torch.testing.assert_close(read_final_position(tiny_llama, ids, mask).logits, expected, atol=1e-4, rtol=1e-4)
        assert columns[-2:] == [ids.shape[1]] * 2 and len(columns) == 2 * runs
        assert mlp == [1] * runs


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_all_columns_run_where_all_states_are_read(asked, tiny_llama):
    tiny_llama.set_attn_implementation("eager")
    columns = watch(last_layer(tiny_llama).mlp)
    length = batch()[0].shape[1]
    read_final_position(tiny_llama, *batch(), hidden_states=True)
    read_final_position(tiny_llama, *batch(), **{asked: True})
    setattr(tiny_llama.config, asked, True)
    read_final_position(tiny_llama, *batch())
    assert columns == [length] * 3


@pytest.mark.parametrize("reentrant", [False, True])
def test_it_runs_on_all_where_the_backward_pass_calls_it_again(reentrant, tiny_llama, tokenizer, tmp_path, rows):
    columns = watch(last_layer(tiny_llama).mlp)
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options={"max_steps": 1, **options})
    columns.clear()
    trainer.train()
    assert len(columns) >= 2 and min(columns) > 1
    columns.clear()
    trainer.predict(trainer.train_dataset)  # keeps nothing for a backward pass
    assert set(columns) == {1}


def test_experts_and_their_auxiliary_loss_see_every_token(experts):
    ids, mask = batch()
    expected = experts(ids, attention_mask=mask)
    final = read_final_position(experts, ids, mask)
    torch.testing.assert_close(final.outputs.aux_loss, expected.aux_loss)
    torch.testing.assert_close(final.logits, expected.logits[:, -1], atol=1e-5, rtol=1e-5)


def test_a_layer_used_twice_is_left_whole(tiny_llama):
    layers = tiny_llama.model.layers
    layers[0].mlp = layers[1].mlp
    ids, mask = batch()
    expected = tiny_llama(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, -1]
    torch.testing.assert_close(read_final_position(tiny_llama, ids, mask).logits, expected)


@pytest.mark.parametrize("instructions", ["AVX512-BF16", "AMX", None])
@pytest.mark.parametrize("trained", [False, True])
def test_products_rounded_to_bf16_in_training_give_the_gradients_to_its_digits(
    trained, instructions, tiny_llama, monkeypatch
):
    monkeypatch.setattr("raft_peft.forward.lm_head.bf16_instructions", lambda: instructions)
    tiny_llama.lm_head.weight.requires_grad_(trained)
    before = torch.backends.mkldnn.matmul.fp32_precision

    def step(dtype):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = read_final_position(tiny_llama, *batch()).logits
        assert logits.dtype == torch.float32
        logits.log_softmax(-1)[:, TOKENS].sum().backward()
        return gradients(tiny_llama)

    exact, found = step(torch.float32), step(torch.bfloat16)
    assert found.keys() == exact.keys() and ("lm_head.weight" in found) == trained
    for name, gradient in found.items():
        assert (gradient - exact[name]).norm() < 0.1 * exact[name].norm(), name
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_what_the_modules_had_is_given_back(tiny_llama):
    mlp, head = last_layer(tiny_llama).mlp, tiny_llama.lm_head
    own = mlp.forward
    mlp.forward = lambda states: own(states)  # as accelerate does for a device map
    replaced = mlp.forward
    with pytest.raises(RuntimeError), few_columns(head, tiny_llama.model, 1):
        assert mlp.forward is not replaced
        raise RuntimeError
    assert mlp.forward is replaced
    assert "forward" not in vars(head)


def test_code_from_elsewhere_is_left_alone(tiny_llama):
    """It may mix the tokens of a row."""

    class Mixing(torch.nn.Module):
        def forward(self, states):
            return states.cumsum(1)

    last_layer(tiny_llama).mlp = Mixing()
    ids, mask = torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.long)
    expected = tiny_llama(ids).logits[:, -1]
    torch.testing.assert_close(read_final_position(tiny_llama, ids, mask).logits, expected)
