"""Small decoders of every family that takes tree attention masks, and what their plain forward says of a number."""

from functools import cache

import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 60
WINDOW = 6  # shorter than the prompts
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
SMALL_GPT = {"vocab_size": VOCABULARY, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**COMMON)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**COMMON, head_dim=8, sliding_window=WINDOW, final_logit_softcapping=2.0)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**{**COMMON, "num_hidden_layers": 7}, head_dim=8, sliding_window=WINDOW)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**COMMON, sliding_window=WINDOW)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**COMMON)),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(**COMMON, head_dim=8, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SMALL_GPT, n_embd=32, initializer_range=0.4)),
}
# Not Gemma 2 under sdpa: it caps its scores, and transformers refuses the two together.
FAMILIES = [(family, attention) for family in MODELS for attention in ("eager", "sdpa")]
FAMILIES.remove(("gemma2", "sdpa"))
# No dense mask for each pair of tokens: attention biased by distance, and no attention at all.
WITHOUT_TREES = {
    "bloom": lambda: BloomForCausalLM(BloomConfig(**SMALL_GPT, hidden_size=32, initializer_range=0.4)),
    "falcon_mamba": lambda: FalconMambaForCausalLM(
        FalconMambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8)
    ),
}
GRIDS = {
    "one or two tokens": ((3,), (3, 4), (5, 6), (5, 7), (9,)),
    "prefixes of prefixes": ((3,), (3, 4), (3, 4, 5), (3, 4, 5, 6), (4,)),
    "none a prefix": ((3, 4, 5), (3, 4, 6), (7, 8, 9)),
}


def make(family):
    torch.manual_seed(0)
    return {**MODELS, **WITHOUT_TREES}[family]().eval()


def alone(model, prompt, grid):
    """log p of each number from the model's plain forward on prompt and number, one at a time."""

    @cache
    def following(beginning):
        with torch.no_grad():
            outputs = model(input_ids=torch.tensor([[*prompt, *beginning]]), logits_to_keep=1)
        return outputs.logits[0, -1].double().log_softmax(-1)

    result = []
    for number in grid:
        total = sum(following(number[:index])[token] for index, token in enumerate(number))
        goes_on = {other[len(number)] for other in grid if other[: len(number)] == number != other}
        if goes_on:
            total = total + torch.log(1 - sum(following(number)[token].exp() for token in goes_on))
        result.append(total)
    return torch.stack(result)


def real_tokens(ids, mask):
    return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
