"""Every decoder of transformers that can be built small: what is read at one position equals the whole forward."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from raft_peft.forward.layouts import padded_sequences
from raft_peft.forward.model import forward_parameters, run

# The same sizes by the names that the families have for them.
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "max_position_embeddings"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "vocab_size": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOO_MANY_PARAMETERS = 20_000_000
IDS = torch.tensor([[0, 0, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


def build(name):
    try:
        config = CONFIG_MAPPING[name](**SIZES)
        config._attn_implementation = "eager"
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
        if size >= TOO_MANY_PARAMETERS:
            pytest.skip(f"{name} has sizes of its own")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        whole_logits(model)
    except Exception as error:
        pytest.skip(f"{name} takes other sizes: {error}")
    return model


def whole_logits(model):
    options = {"position_ids": (MASK.cumsum(1) - 1).clamp(min=0), "use_cache": False}
    names = forward_parameters(model)
    options = {name: value for name, value in options.items() if name in names}
    if "logits_to_keep" not in names:
        pytest.skip("gives the logits of all positions only, and is refused")
    return model(input_ids=IDS, attention_mask=MASK, **options).logits[:, -1]


def gradient(model, logits):
    model.zero_grad()
    logits.float().log_softmax(-1)[:, [5, 6]].sum().backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_the_last_position_read_alone(name):
    model = build(name)
    logits = whole_logits(model)
    expected = gradient(model, logits)
    scale = torch.stack([one.norm() for one in expected.values()]).norm()
    outputs, _ = run(model, padded_sequences(model, IDS, MASK))
    found = outputs.logits[:, -1]
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)
    of_parameters = gradient(model, found)
    for parameter, one in expected.items():
        difference = one - of_parameters.get(parameter, torch.zeros_like(one))
        assert difference.norm() < 1e-3 * scale, parameter
