"""What a model is asked: its own forward at few positions, carried out on a view that leaves the model as it is."""

import copy
import functools
import types

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.modules import attributes
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from raft_peft.forward.decoding import generate_texts
from raft_peft.forward.final_position import read_final_position
from raft_peft.forward.layouts import flat_sequences, padded_sequences
from raft_peft.forward.model import attach_reading, read_inside, with_parts

# They begin alike, so that prompts laid end to end have a prefix.
PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10], [3, 4, 13], [3, 4, 5, 14, 15]]
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


@pytest.fixture
def lora_llama(tiny_llama):
    return get_peft_model(tiny_llama, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()


def batch():
    length = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    return ids, mask


def gradients(model):
    found = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    return found


@pytest.mark.parametrize("layout", [padded_sequences, flat_sequences])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma2", "gpt2", "lora_llama"])
def test_one_pass_gives_the_logits_and_gradients_of_each_prompt_alone(name, layout, request):
    model = request.getfixturevalue(name)
    by_hand = torch.stack([model(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])
    by_hand.log_softmax(-1)[:, TOKENS].square().sum().backward()
    expected = gradients(model)
    if layout is flat_sequences:
        config = model.config
        config._attn_implementation = "flat_" + config._attn_implementation
    logits = read_final_position(model, *batch(), layout=layout).logits
    torch.testing.assert_close(logits, by_hand, atol=1e-4, rtol=1e-4)
    logits.log_softmax(-1)[:, TOKENS].square().sum().backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for parameter, gradient in found.items():
        torch.testing.assert_close(gradient, expected[parameter], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("hidden_states", [False, True])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma2", "gpt2", "experts", "lora_llama"])
def test_a_pass_changes_nothing_on_the_model(name, hidden_states, request):
    model = request.getfixturevalue(name)
    with torch.no_grad():
        # At the first pass of a mixture of experts transformers adds the hooks that collect its router's logits.
        model(torch.tensor([PROMPTS[0]]))
        before = attributes(model)
        read_final_position(model, *batch(), hidden_states=hidden_states)
    assert attributes(model) == before


def test_generating_changes_nothing_either_and_takes_none_of_the_models_habits(lora_llama, tokenizer):
    ids, mask = batch()
    plain = generate_texts(lora_llama, tokenizer, ids, mask)
    for owner in (lora_llama, lora_llama.get_base_model()):
        owner.generation_config.update(repetition_penalty=5.0, suppress_tokens=[int(ids[0, -1])])
    before = attributes(lora_llama)
    assert generate_texts(lora_llama, tokenizer, ids, mask) == plain
    assert attributes(lora_llama) == before


def test_output_embeddings_are_those_of_the_backbone(lora_llama):
    ids, mask = batch()
    final = read_final_position(lora_llama, ids, mask, hidden_states=True)
    options = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    expected = lora_llama.get_base_model().model(ids, **options).last_hidden_state
    torch.testing.assert_close(final.hidden_states, expected)


def test_experts_and_their_auxiliary_loss_see_every_token(experts):
    ids, mask = batch()
    expected = experts(ids, attention_mask=mask)
    final = read_final_position(experts, ids, mask)
    torch.testing.assert_close(final.outputs.aux_loss, expected.aux_loss)
    torch.testing.assert_close(final.logits, expected.logits[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["method", "partial", "method around the model's own"])
def test_a_forward_that_a_model_was_given_is_that_of_its_views(kind, tiny_llama):
    """Accelerate gives one to a model that it moves, and TRL to one that it trains."""
    own, bound = type(tiny_llama).forward, tiny_llama.forward

    def doubled(model, *args, **kwargs):
        outputs = own(model, *args, **kwargs)
        outputs.logits = 2 * outputs.logits
        return outputs

    def doubled_around(model, *args, scale=2, **kwargs):
        outputs = bound(*args, **kwargs)
        outputs.logits = scale * outputs.logits
        return outputs

    expected = read_final_position(tiny_llama, *batch(), hidden_states=True)
    given = {
        "method": types.MethodType(doubled, tiny_llama),
        "partial": functools.partial(doubled, tiny_llama),
        "method around the model's own": types.MethodType(doubled_around, tiny_llama),
    }[kind]
    tiny_llama.forward = given
    found = read_final_position(tiny_llama, *batch(), hidden_states=True)
    torch.testing.assert_close(found.logits, 2 * expected.logits)
    torch.testing.assert_close(found.hidden_states, expected.hidden_states)
    assert tiny_llama.forward is given


def test_a_view_follows_what_is_done_to_the_model(lora_llama):
    expected = read_final_position(lora_llama, *batch()).logits
    with lora_llama.disable_adapter():
        without = read_final_position(lora_llama, *batch()).logits
    assert not torch.allclose(without, expected)
    torch.testing.assert_close(read_final_position(lora_llama, *batch()).logits, expected)


def test_a_part_is_replaced_in_the_view_alone(tiny_llama):
    head = tiny_llama.lm_head
    view = with_parts(tiny_llama, {head: torch.nn.Identity()})
    assert view(torch.tensor([[3, 4]])).logits.shape == (1, 2, 32)
    assert tiny_llama.lm_head is head and view.model is tiny_llama.model


def test_a_reading_is_carried_out_inside_the_forward_that_a_wrapper_wraps(lora_llama):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.inside = module, False

        def forward(self, *args, **kwargs):
            self.inside = True
            outputs = self.module(*args, **kwargs)
            self.inside = False
            return outputs

    hooked = []
    lora_llama.register_forward_pre_hook(lambda *_: hooked.append(1))
    expected = read_final_position(lora_llama, *batch()).logits
    attach_reading(lora_llama)
    attach_reading(lora_llama)
    wrapper = Wrapper(lora_llama)
    hooked.clear()

    def reading(model):
        assert wrapper.inside
        return {"logits": read_final_position(model, *batch()).logits}

    torch.testing.assert_close(read_inside(wrapper, reading)["logits"], expected)
    assert hooked == [1]
    plain = torch.tensor([PROMPTS[0]])
    torch.testing.assert_close(wrapper(plain).logits[0, -1], expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(copy.deepcopy(lora_llama)(plain).logits, lora_llama(plain).logits)
