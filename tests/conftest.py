"""Small models and tokenizers made on the spot, and real ones from the package index."""

import functools
import gc
from pathlib import Path

import pytest
import torch
from support.real_tokenizers import real_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from examples.embedded_model import embedded_gemma3, embedded_model

# Numbers often enough that the trained tokenizers give each digit, and " 3", a token of its own.
CORPUS = [f"Rate the item {n} from 0 to 9: the score is {n % 10} out of 9.\n({n % 10})" for n in range(300)] * 3
SPECIAL = ["<unk>", "<pad>", "<eos>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)


def pytest_collection_finish() -> None:
    # Every training ends with a garbage collection, which would look at all that the libraries loaded each time.
    gc.collect()
    gc.freeze()


def as_hugging_face(tokenizer: Tokenizer, **options) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", **options
    )


@functools.cache
def trained_byte_level() -> str:
    """The tokenizer as JSON, since training it takes longer than reading it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def make_byte_level() -> PreTrainedTokenizerFast:
    """GPT-2 style: " 3" is the one token `Ġ3`."""
    return as_hugging_face(Tokenizer.from_str(trained_byte_level()))


def make_sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2 and Gemma style: spaces become `▁`, digits stand alone, so that " 3" is `▁`, `3`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split("▁", "merged_with_next")]
    )
    tokenizer.decoder = decoders.Replace("▁", " ")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[*SPECIAL, *(f"<0x{b:02X}>" for b in range(256))])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return as_hugging_face(tokenizer)


def make_word_level() -> PreTrainedTokenizerFast:
    """Words and punctuation, no sub-words: "3" is one token or none."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=400, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return as_hugging_face(tokenizer)


@pytest.fixture(scope="session")
def byte_level():
    return make_byte_level()


@pytest.fixture(scope="session")
def sentencepiece():
    return make_sentencepiece()


@pytest.fixture(scope="session")
def word_level():
    return make_word_level()


@pytest.fixture
def tokenizer():
    """A tokenizer that a test may change."""
    tokenizer = make_byte_level()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_tiny_llama(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=1,
        eos_token_id=2,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_llama(tokenizer):
    return make_tiny_llama(tokenizer)


@pytest.fixture
def tiny_gemma2(tokenizer):
    """Soft-capped logits and sliding windows shorter than the prompts."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        final_logit_softcapping=2.0,
        pad_token_id=1,
        eos_token_id=2,
        bos_token_id=2,
        initializer_range=0.4,
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct."""
    return embedded_model()


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    return real_tokenizer("SmolLM2")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """The folder of Gemma-3-270M."""
    return embedded_gemma3()


@pytest.fixture(scope="session")
def gemma3_tokenizer():
    return real_tokenizer("Gemma 3")


@pytest.fixture
def rows():
    """Eight rows of different length, with labels between the grid points."""
    items = ["tea", "a cup of very hot tea", "soup", "the long and winding item 27", "1", "a", "item 3", "it"]
    return [
        {"prompt": f"Rate {item} from 0 to 4, the score is", "label": 0.5 * index} for index, item in enumerate(items)
    ]
