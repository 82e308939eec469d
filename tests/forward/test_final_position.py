import pytest
import torch
from support.training import make
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from raft_peft.forward.final_position import read_final_position
from raft_peft.forward.layout_choice import check_bidirectional
from raft_peft.forward.model import check_final_logits


def by_hand(model, rows):
    """Each row alone, all its logits, and the last of them."""
    with torch.no_grad():
        return torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])


@pytest.fixture
def gpt2():
    """Learned absolute positions, which padding on the left would shift."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.4)
    return GPT2LMHeadModel(config).eval()


ROWS = [[5, 6, 7, 8, 9, 10, 11, 12], [13], [2, 2, 14]]  # 2 is the eos token, and the padding below


def padded(side):
    ids, mask = torch.full((3, 12), 2), torch.zeros(3, 12, dtype=torch.long)
    for index, row in enumerate(ROWS):
        start = {"left": 12 - len(row), "right": 0, "both": (12 - len(row)) // 2}[side]
        ids[index, start : start + len(row)] = torch.tensor(row)
        mask[index, start : start + len(row)] = 1
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma2", "gpt2"])
def test_equals_each_row_alone(name, side, request):
    model = request.getfixturevalue(name)
    ids, mask = padded(side)
    with torch.no_grad():
        logits = read_final_position(model, ids, mask).logits
    torch.testing.assert_close(logits, by_hand(model, ROWS), atol=1e-5, rtol=0)


def test_soft_capping_is_the_models_own(tiny_gemma2):
    ids, mask = padded("left")
    with torch.no_grad():
        logits = read_final_position(tiny_gemma2, ids, mask).logits
    assert logits.abs().max() <= 2.0


def test_autocast_leaves_the_head_in_float32(tiny_llama):
    seen = []
    tiny_llama.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    tiny_llama.model.layers[0].mlp.up_proj.register_forward_hook(lambda m, i, output: seen.append(output.dtype))
    ids, mask = padded("left")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = read_final_position(tiny_llama, ids, mask).logits
        assert torch.is_autocast_enabled("cpu")
    assert seen == [torch.bfloat16, torch.float32]
    assert logits.dtype == torch.float32
    assert len(tiny_llama.lm_head._forward_pre_hooks) == 0


def test_autocast_is_restored_when_the_forward_fails(tiny_llama):
    def fail(*_):
        raise RuntimeError("out of memory")

    tiny_llama.lm_head.register_forward_hook(fail)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError, match="out of memory"):
            read_final_position(tiny_llama, *padded("left"))
        assert torch.is_autocast_enabled("cpu")


def test_bf16_models(tiny_llama):
    model = tiny_llama.to(torch.bfloat16)
    logits = read_final_position(model, *padded("left")).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits, by_hand(model, ROWS), atol=0.15, rtol=0.05)


def test_a_model_without_a_vocabulary_is_refused():
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match="BertModel has no output over the vocabulary"):
        check_final_logits(BertModel(config))


def test_a_forward_that_gives_every_position_is_refused(tiny_llama):
    class Old(type(tiny_llama)):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids, attention_mask)

    tiny_llama.__class__ = Old
    with pytest.raises(ValueError, match="takes no `logits_to_keep`"):
        check_final_logits(tiny_llama)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma2", "gpt2"])
def test_hidden_states_are_those_of_the_real_tokens(name, side, request):
    model = request.getfixturevalue(name)
    with torch.no_grad():
        final = read_final_position(model, *padded(side), hidden_states=True)
        for index, row in enumerate(ROWS):
            expected = model(torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0]
            real = final.hidden_states[index][final.attention_mask[index].bool()]
            torch.testing.assert_close(real, expected, atol=1e-5, rtol=0)
    assert read_final_position(model, *padded(side)).hidden_states is None


def test_bidirectional_attention_reaches_every_token(tiny_llama):
    """Without causal masks and positions of their own, the first token sees the last."""
    check_bidirectional(tiny_llama)
    ids, mask = padded("left")
    with torch.no_grad():
        final = read_final_position(tiny_llama, ids, mask, hidden_states=True, is_causal=False)
        alone = read_final_position(
            tiny_llama,
            torch.tensor([ROWS[2]]),
            torch.ones(1, 3, dtype=torch.long),
            hidden_states=True,
            is_causal=False,
        )
        causal = read_final_position(tiny_llama, ids, mask)
    torch.testing.assert_close(final.logits[2:], alone.logits, atol=1e-5, rtol=0)  # padding stays masked
    assert not torch.allclose(final.logits, causal.logits, atol=1e-3)
    changed = ids.clone()
    changed[0, -1] = 20
    with torch.no_grad():
        other = read_final_position(tiny_llama, changed, mask, hidden_states=True, is_causal=False)
    first = 12 - len(ROWS[0])
    assert not torch.allclose(final.hidden_states[0, first], other.hidden_states[0, first], atol=1e-4)


def test_an_architecture_that_stays_causal_is_refused():
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4, n_positions=64)

    class Deaf(GPT2LMHeadModel):
        def forward(self, *args, is_causal=None, **kwargs):
            return super().forward(*args, **kwargs)

    with pytest.raises(ValueError, match=r"Deaf attends to earlier tokens only.*attention='causal'"):
        check_bidirectional(Deaf(config))


def test_the_trainer_multiplies_the_output_matrix_in_its_own_dtype(tiny_llama, tokenizer, tmp_path, rows):
    """accelerate turns autocast on inside the model's forward, not around it."""
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options={"bf16": True, "max_steps": 1})
    dtypes = []
    tiny_llama.lm_head.register_forward_hook(lambda _, inputs, output: dtypes.append((inputs[0].dtype, output.dtype)))
    tiny_llama.model.layers[0].mlp.up_proj.register_forward_hook(lambda *found: dtypes.append(found[2].dtype))
    trainer.train()
    assert dtypes == [torch.bfloat16, (torch.float32, torch.float32)]
