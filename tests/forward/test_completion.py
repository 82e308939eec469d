import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, GPT2LMHeadModel

from raft_peft.data.batches import IGNORED
from raft_peft.forward.completion import read_completion

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [13], [2, 2, 14]]  # 2 is the eos token, and the padding of the prompts below
TARGETS = [[20], [21, 0, 22, 2], [23, 2]]  # 0 is a token like any other
MODELS = ["tiny_llama", "tiny_gemma2", "gpt2"]


@pytest.fixture
def gpt2():
    """Learned absolute positions, which padding on the left would shift."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=420, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.4)
    return GPT2LMHeadModel(config).eval()


def padded(length=10, tokens=4):
    ids, mask = torch.full((3, length), 2), torch.zeros(3, length, dtype=torch.long)
    target_ids = torch.full((3, tokens), IGNORED)
    for row, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
        target_ids[row, : len(target)] = torch.tensor(target)
    return ids, mask, target_ids


def by_hand(model, prompt, target):
    """One row alone: all its logits, and what they say of each token of the target."""
    with torch.no_grad():
        log_p = model(torch.tensor([prompt + target])).logits[0].double().log_softmax(-1)
    # The last token of the prompt, in column len(prompt) - 1, says the first of the target.
    return [log_p[len(prompt) - 1 + index, token].item() for index, token in enumerate(target)]


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_those_of_each_row_alone(name, request):
    model = request.getfixturevalue(name)
    with torch.no_grad():
        completion = read_completion(model, *padded())
    expected = torch.zeros(3, 4)
    for row, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        expected[row, : len(target)] = torch.tensor(by_hand(model, prompt, target))
    torch.testing.assert_close(completion.log_probs, expected, atol=2e-5, rtol=0)
    assert completion.log_probs.dtype == torch.float32
    assert expected[expected != 0].max() < -0.1  # no zero among them that padding could be taken for


@pytest.mark.parametrize("name", MODELS)
def test_padding_counts_nothing(name, request):
    model = request.getfixturevalue(name)
    with torch.no_grad():
        narrow, wide = read_completion(model, *padded()), read_completion(model, *padded(length=17, tokens=7))
    assert narrow.mask.tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert (narrow.log_probs[narrow.mask == 0] == 0).all()
    assert (wide.log_probs[:, 4:] == 0).all() and (wide.mask[:, 4:] == 0).all()
    torch.testing.assert_close(wide.log_probs[:, :4], narrow.log_probs, atol=2e-5, rtol=0)
    torch.testing.assert_close(wide.first_logits, narrow.first_logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_the_first_logits_are_the_prompts_last(name, request):
    model = request.getfixturevalue(name)
    with torch.no_grad():
        first_logits = read_completion(model, *padded()).first_logits
        expected = torch.stack([model(torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS])
    torch.testing.assert_close(first_logits, expected, atol=2e-5, rtol=0)


def test_targets_of_one_token(tiny_llama):
    ids, mask, target_ids = padded()
    with torch.no_grad():
        completion = read_completion(tiny_llama, ids, mask, target_ids[:, :1])
    expected = [by_hand(tiny_llama, prompt, target[:1]) for prompt, target in zip(PROMPTS, TARGETS, strict=True)]
    torch.testing.assert_close(completion.log_probs, torch.tensor(expected), atol=2e-5, rtol=0)


def test_bf16_models_give_float32_log_probs(tiny_gemma2):
    model = tiny_gemma2.to(torch.bfloat16)
    completion = read_completion(model, *padded())
    assert completion.log_probs.dtype == torch.float32
    assert completion.first_logits.dtype == torch.bfloat16
    expected = by_hand(model, PROMPTS[1], TARGETS[1])
    torch.testing.assert_close(completion.log_probs[1].detach(), torch.tensor(expected), atol=0.1, rtol=0)


def test_the_gradient_is_that_of_each_row_alone(tiny_llama):
    read_completion(tiny_llama, *padded()).log_probs.sum().backward()
    together = tiny_llama.model.layers[0].mlp.up_proj.weight.grad.clone()
    tiny_llama.zero_grad()
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        log_p = tiny_llama(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
        sum(log_p[len(prompt) - 1 + index, token] for index, token in enumerate(target)).backward()
    alone = tiny_llama.model.layers[0].mlp.up_proj.weight.grad
    torch.testing.assert_close(together, alone, atol=1e-4 * alone.abs().max().item(), rtol=1e-4)


class Largest(TorchDispatchMode):
    """Notes the greatest number of elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


@pytest.mark.parametrize("name", MODELS)
def test_no_tensor_is_batch_x_length_x_vocabulary(name, request):
    """Neither forwards nor backwards: none is larger than the output matrix, of vocabulary x hidden."""
    model = request.getfixturevalue(name)
    vocabulary, length, tokens = model.config.vocab_size, 30, 4
    ids, mask, target_ids = padded(length=length, tokens=tokens)
    with Largest() as largest:
        read_completion(model, ids, mask, target_ids).log_probs.sum().backward()
    assert 3 * tokens * vocabulary <= largest.elements <= vocabulary * model.config.hidden_size
    with Largest() as whole, torch.no_grad():
        model(ids, attention_mask=mask)
    assert whole.elements >= 3 * length * vocabulary
