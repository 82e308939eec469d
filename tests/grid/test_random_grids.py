"""Random grids (ten thousand in the slow tests) and tokenizers: exact tokens, or the documented error."""

import calendar
import math
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from raft_peft import NumberGrid
from raft_peft.grid.number_end import NumberEnd
from raft_peft.grid.resolution import Context, GridResolver, default_separator
from raft_peft.grid.trie import Trie

SEED = 0
SPECIAL = ["<unk>", "<bos>", "<eos>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MONTHS = list(calendar.month_name)[1:]
WORDS = [
    "the",
    "score",
    "is",
    "a",
    "star",
    "of",
    "item",
    "rate",
    "total",
    "price",
    "good",
    "bad",
    "very",
    "out",
    "and",
]

# What the errors say: the thing, and the cure.
ERRORS = {
    "grid": r"The grid (has the (value|text) .+ more than once; use each|is empty.+Example: grid=)",
    "empty": r"The prompt is empty\. The model needs a text",
    "merges": r"The number '.+' merges into the end of the prompt .+End the prompt with a space",
    "unknown": r"no token for the grid text .+ after .+Choose values that it can write, or give them other texts",
    "split": r"The grid text .+ has a token of its own, but after .+ it is written as .+End the prompt with a space",
    "same": r"The grid texts .+ and .+ are the same tokens .+Give them texts that differ",
    "overlap": r"The grid text .+ with its end .+ is the beginning of another, .+Set `number_end` to 'grid'",
    "target": r"The target's text begins inside the prompt .+Scale the labels .+, or set another separator",
}

# --- Random tokenizers

THREES = r"\p{N}{1,3}"
RIGHT_TO_LEFT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def corpus(rng):
    kinds = [
        lambda: str(rng.randint(0, 10 ** rng.randint(1, 7))),
        lambda: str(rng.randint(0, 10)),
        lambda: f"{rng.uniform(-100, 100):.{rng.randint(1, 4)}f}",
        lambda: f"${rng.uniform(0, 99):.2f}",
        lambda: f"-{rng.randint(1, 20)}",
        lambda: rng.choice(MONTHS),
        lambda: rng.choice("ABCDEFGHIJ"),
        lambda: rng.choice(["評価", "оценка", "é", "😀", "€5", "...", "-----", "=====", "1,000", "\t", "    "]),
    ]
    for _ in range(300):
        words = [rng.choice(kinds)() if rng.random() < 0.5 else rng.choice(WORDS) for _ in range(8)]
        yield rng.choice([" ", " ", " ", "  ", ": "]).join(words) + rng.choice(["", ".", "\n", ":\n", " ("])


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(rng, *before, use_regex=True, prefix_space=False, normalizer=None, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=259 + rng.choice([0, 5, 10, 50, 150, 400, 900]),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return tokenizer, trainer


def sentencepiece(rng, *before, prepend=True):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prepend else spaces
    if before:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(before))
    strip = [decoders.Strip(" ", 1, 0)] if prepend else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=259 + rng.choice([60, 150, 400, 900]), special_tokens=[*SPECIAL, *BYTES], show_progress=False
    )
    return tokenizer, trainer


def characters(rng, *before, unk_token="<unk>", normalizer=None):
    """Merges of characters. One that the corpus lacks is unknown, or left out where there is no token for it."""
    tokenizer = Tokenizer(models.BPE(unk_token=unk_token))
    if before:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(before))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Fuse()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=rng.choice([100, 200, 500, 1200]), special_tokens=SPECIAL, show_progress=False
    )


def metaspace(rng, scheme, *before):
    tokenizer, trainer = characters(rng, *before, pre_tokenizers.Metaspace(prepend_scheme=scheme))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tokenizer, trainer


def unigram(rng, *before, normalizer=None):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=rng.choice([150, 300]), special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )


def word_piece(rng, normalizer):
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, trainers.WordPieceTrainer(
        vocab_size=rng.choice([150, 300, 900]), special_tokens=SPECIAL, show_progress=False
    )


def word_level(rng, *before):
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.Whitespace()])
    return tokenizer, trainers.WordLevelTrainer(
        vocab_size=rng.choice([100, 400, 2000]), special_tokens=SPECIAL, show_progress=False
    )


digits = pre_tokenizers.Digits(individual_digits=True)
KINDS = {
    "byte-level": byte_level,
    "byte-level, prefix space": lambda rng: byte_level(rng, prefix_space=True),
    "byte-level, single digits": lambda rng: byte_level(rng, digits),
    "byte-level, digits in threes": lambda rng: byte_level(rng, split(THREES)),
    "byte-level, digits in threes from the right": lambda rng: byte_level(rng, split(RIGHT_TO_LEFT)),
    "byte-level, GPT-4": lambda rng: byte_level(rng, split(GPT4), use_regex=False),
    "byte-level, GPT-4, whole words": lambda rng: byte_level(rng, split(GPT4), use_regex=False, ignore_merges=True),
    "byte-level, merges across words": lambda rng: byte_level(rng, use_regex=False),
    "byte-level, lower case": lambda rng: byte_level(rng, normalizer=normalizers.Lowercase()),
    "byte-level, NFKC": lambda rng: byte_level(rng, normalizer=normalizers.NFKC()),
    "SentencePiece": sentencepiece,
    "SentencePiece, single digits": lambda rng: sentencepiece(rng, digits),
    "SentencePiece, nothing prepended": lambda rng: sentencepiece(rng, prepend=False),
    "characters": characters,
    "characters, words": lambda rng: characters(rng, pre_tokenizers.Split(" ", "merged_with_next")),
    "characters, others left out": lambda rng: characters(rng, unk_token=None),
    "characters, others and digits left out": lambda rng: characters(rng, unk_token=None),
    "characters, stripped": lambda rng: characters(rng, normalizer=normalizers.Strip()),
    "characters, single spaces": lambda rng: characters(rng, normalizer=normalizers.Replace(Regex(r"\s+"), " ")),
    "Metaspace, always": lambda rng: metaspace(rng, "always"),
    "Metaspace, first": lambda rng: metaspace(rng, "first", digits),
    "Metaspace, never": lambda rng: metaspace(rng, "never"),
    "Unigram": unigram,
    "Unigram, single digits, NFKC": lambda rng: unigram(rng, digits, normalizer=normalizers.NFKC()),
    "WordPiece": lambda rng: word_piece(rng, normalizers.BertNormalizer(lowercase=False)),
    "WordPiece, lower case": lambda rng: word_piece(rng, normalizers.BertNormalizer(lowercase=True)),
    "WordLevel": word_level,
    "WordLevel, single digits": lambda rng: word_level(rng, digits),
}
ADDED = [
    AddedToken("100"),
    AddedToken("10", single_word=True),
    AddedToken("1."),
    AddedToken(" out of"),
    AddedToken("\n\n", normalized=False),
    AddedToken("-----"),
    AddedToken("is 5"),
    AddedToken("the score is a star of the item: 7"),
    AddedToken("<n>"),
    AddedToken("<|end|>", special=True),
]


def train(kind, rng, *, bos):
    tokenizer, trainer = KINDS[kind](rng)
    lines = corpus(rng)
    if "digits left out" in kind:
        lines = (re.sub(r"\d", "", line) for line in lines)
    tokenizer.train_from_iterator(lines, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A" + rng.choice(["", " <eos>"]), special_tokens=[("<bos>", 1), ("<eos>", 2)]
        )
    unk = rng.choice(["<unk>", "<eos>"]) if kind.startswith("byte-level") else "<unk>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unk, bos_token="<bos>", eos_token="<eos>", name_or_path=kind
    )
    if rng.random() < 0.4:
        tokenizer.add_tokens(rng.sample(ADDED, rng.randint(1, 4)))
    return tokenizer


# --- Random grids


def numbered(texts):
    return dict(enumerate(dict.fromkeys(texts)))


GRIDS = [
    lambda rng: range(1, 6),
    lambda rng: range(10),
    lambda rng: rng.sample(range(101), rng.randint(2, 20)),
    lambda rng: range(rng.choice([8, 80]), 103),
    lambda rng: NumberGrid.spaced(0, rng.choice([1, 2]), 0.1),
    lambda rng: NumberGrid.spaced(0, 5, 0.5),
    lambda rng: [index / 100 for index in rng.sample(range(200), 12)],
    lambda rng: range(-5, 6),
    lambda rng: [-1.5, -1, -0.5, 0, 0.5, 1, 1.5],
    lambda rng: [10**power for power in range(rng.randint(2, 8))],
    lambda rng: [10.0**power for power in range(-4, 3)],
    lambda rng: numbered(f"${rng.uniform(0, 20):.2f}" for _ in range(8)),
    lambda rng: numbered(f"{rng.randint(0, 10_000_000):,}" for _ in range(6)),
    lambda rng: numbered(rng.sample("ABCDEFGHIJabcdefghij", 6)),
    lambda rng: numbered(MONTHS),
    lambda rng: numbered(month[:3] for month in rng.sample(MONTHS, 6)),
    lambda rng: numbered(rng.sample(WORDS, rng.randint(2, 8))),
    lambda rng: [rng.uniform(-1000, 1000) for _ in range(rng.randint(2, 8))],
    lambda rng: [rng.randint(0, 10 ** rng.randint(1, 12)) for _ in range(6)],
    lambda rng: numbered(f"{rng.choice(WORDS)} {rng.choice(WORDS)}" for _ in range(5)),
    lambda rng: numbered([" 1", "1", "2 ", " 2", "1 0", "10"][: rng.randint(2, 6)]),
    lambda rng: numbered(f"{index:02d}" for index in range(12)),
    lambda rng: numbered(str(index)[::-1] for index in range(95, 125)),
    lambda rng: numbered(rng.choice(".-=*0 1") * rng.randint(1, 12) + rng.choice("15") for _ in range(4)),
    lambda rng: numbered("0" * length for length in range(1, rng.randint(3, 6))),
    lambda rng: numbered(rng.sample(["\uff11", "1", "٣", "三", "é", "😀", "½", "Ⅳ", "ß", "評価", "1e3"], 4)),
    lambda rng: numbered(f"{index}%" for index in range(0, 101, 10)),
    lambda rng: numbered("".join(rng.choices("01.,- a", k=rng.randint(1, 5))) + "0" for _ in range(5)),
]
ENDINGS = [
    *["", ":", ": ", ":\n", " ", "  ", "\n", "\n\n", " (", "(", " [", '"', "$", " $", "€", " -", "\t", "\u00a0"],
    *["5", " 27", " 1", "0.", " 10", "評価", "оценка ", "é", "😀", " 😀 ", "-----", "....", " ,", "<eos>"],
    *["<n>", "<|end|>", " the score is a star of the item:"],
]
RUNS = ["0", "7", "12", "120", "-", ".", "=", " ", "\n ", "ab", "x"]
OPENINGS = ["", "Rate it. ", "<bos>", "Review 12: very good!\n", "評価 ", "  ", "It's $5.00, or 1,000 stars: ", "A\n"]
NUMBER_ENDS = [".", "\n", " stars", ",", ")", "0", "<|end|>", "<eos>", " ", "%"]


def random_ending(rng):
    if rng.random() < 0.8:
        return rng.choice(ENDINGS)
    return rng.choice(["", " 1"]) + rng.choice(RUNS) * rng.randint(5, 40)


def random_prompts(rng):
    shared = " ".join(rng.choices(WORDS, k=rng.choice([0, 1, 3, 12]))) + random_ending(rng)
    prompts = [rng.choice(OPENINGS) + shared for _ in range(2)]
    prompts.append(rng.choice(OPENINGS) + rng.choice(WORDS) + str(rng.randint(0, 999)) + random_ending(rng))
    if rng.random() < 0.02:
        prompts.append(rng.choice(["", " ", "\n"]))
    return prompts


def random_case(rng, tokenizer, grid):
    """Contexts, what ends a number, and a target for each context."""
    separator = rng.choice([None, None, None, None, "", "", " ", "\n", ": "])
    contexts = [
        Context(prompt, default_separator(prompt) if separator is None else separator)
        for prompt in random_prompts(rng)
    ]
    name = rng.choice(["grid", "grid", "grid", "eos", *rng.sample(NUMBER_ENDS, 2)])
    number_end = NumberEnd.of(name, tokenizer, every_number=rng.random() < 0.3)
    return contexts, number_end, [rng.choice(grid.texts) + rng.choice(["", "5"]) for _ in contexts]


# --- What must come out, by other code than the package's


def is_beginning(one, other):
    return other[: len(one)] == one and len(other) > len(one)


def end(offsets):
    return max((end for _, end in offsets), default=0)


def visible(text):
    """Without white space, which a tokenizer may take in, or leave out."""
    return "".join(text.replace("▁", " ").split())


class Expectation:
    """The tokens of each number in each context, from the tokenizer's own encoding of every whole sentence.

    For each context the ids of the prompt, of the numbers and of the target, or the kind of the error.
    """

    def __init__(self, tokenizer, leading, grid, contexts, number_end, targets):
        self.tokenizer, self.leading, self.texts, self.end = tokenizer, leading, grid.texts, number_end
        self.added = tokenizer.get_added_vocab()
        self.leaves_out = "left out" in tokenizer.name_or_path
        self.rows = [self.of_row(context, target) for context, target in zip(contexts, targets, strict=True)]

    def encode(self, texts):
        encoded = self.tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(tuple(one.ids), one.offsets) for one in encoded]

    def of_row(self, context, target):
        if not context.text.strip():
            return "empty"
        outcome = self.numbers(context.opening, self.texts)
        if not isinstance(outcome, str) and self.end != NumberEnd():
            outcome = self.with_end(context.opening, *outcome)
        if isinstance(outcome, str):
            return outcome
        prompt, numbers = outcome
        [(target, _)] = self.encode([context.opening + target])
        if not is_beginning(prompt, target):
            return "target"
        leading = () if prompt[: len(self.leading)] == self.leading else self.leading
        return leading + prompt, tuple(numbers), target[len(prompt) :]

    def numbers(self, opening, texts):
        (prompt, _), *sentences = self.encode(opening + text for text in ("", *texts))
        length = len(prompt)
        while any(ids[:length] != prompt[:length] for ids, _ in sentences):
            length -= 1
        taken = [
            text[: max(0, end(offsets[:length]) - len(opening))]
            for text, (_, offsets) in zip(texts, sentences, strict=True)
        ]
        if self.tokenizer.decode(prompt[length:]).strip() or "".join(taken).strip():
            return "merges"
        numbers = [ids[length:] for ids, _ in sentences]
        for index, (ids, text) in enumerate(zip(numbers, texts, strict=True)):
            if not ids or self.is_unknown(ids, text):
                return "unknown"
            if self.added.get(self.texts[index], ids[0]) != ids[0]:
                return "split"
            if ids in numbers[:index]:
                return "same"
        return prompt[:length], numbers

    def is_unknown(self, ids, text):
        if self.leaves_out:
            written = visible("".join(self.tokenizer.convert_ids_to_tokens(ids)))
            return not written.endswith(visible(text))
        return self.tokenizer.unk_token_id in ids and self.tokenizer.unk_token not in text

    def with_end(self, opening, prompt, numbers):
        beginnings = {number[:length] for number in numbers for length in range(len(number))}
        ended = [self.end.every_number or number in beginnings for number in numbers]
        if self.end.text:
            texts = [text + self.end.text * end for text, end in zip(self.texts, ended, strict=True)]
            outcome = self.numbers(opening, texts)
            if isinstance(outcome, str):
                return outcome
            prompt, numbers = outcome
        else:
            numbers = [number + (self.end.token_id,) * end for number, end in zip(numbers, ended, strict=True)]
        overlap = any(is_beginning(one, other) for one in numbers for other in numbers)
        return "overlap" if overlap else (prompt, numbers)


def outcome_of(resolved):
    if not isinstance(resolved, ValueError):
        return resolved.prompt_ids, resolved.token_ids, resolved.target_ids
    assert type(resolved) is ValueError
    return next((kind for kind, message in ERRORS.items() if re.search(message, str(resolved), re.DOTALL)), resolved)


def is_cut_right(tokenizer, context, grid, number_end, resolved):
    """Whether all of the prompt's text, and nothing of the number's, stands before the cut; white space aside."""
    if re.search("lower case|NFKC", tokenizer.name_or_path):
        return True  # it does not give its texts back
    before = visible(tokenizer.decode(resolved.prompt_ids))
    wholes = tokenizer.batch_decode([[*resolved.prompt_ids, *ids] for ids in resolved.token_ids])
    lossy = "left out" in tokenizer.name_or_path or tokenizer.unk_token_id in resolved.prompt_ids
    end = number_end.text if number_end.token_id is None else tokenizer.decode(number_end.token_id)
    return (lossy or before.endswith(visible(context.opening))) and all(
        visible(whole) in (before + visible(text), before + visible(text + end))
        for whole, text in zip(wholes, grid.texts, strict=True)
    )


TABLE = 3 * np.random.default_rng(0).normal(size=(4093, 512)).astype(np.float32)


def logits_after(row, beginning, size):
    """Random, but always the same."""
    return TABLE[hash((row, *beginning)) % len(TABLE), :size]


def brute_force(row, numbers, size):
    goes_on = defaultdict(set)
    for number in numbers:
        for index, token in enumerate(number):
            goes_on[number[:index]].add(token)
    probs = {}
    for beginning in {*goes_on, *numbers}:
        exponentials = np.exp(logits_after(row, beginning, size).astype(np.float64))
        probs[beginning] = exponentials / exponentials.sum()
    return [
        math.prod(probs[number[:index]][token] for index, token in enumerate(number))
        * (1 - sum(probs[number][token] for token in goes_on.get(number, ())))
        for number in numbers
    ]


def beginnings_of_nodes(trie, row):
    """The tokens before each node of a row, the root first, by what the trie says of its nodes."""
    on_path, ids, depths = trie.ancestors[row].numpy(), trie.node_ids[row].numpy(), trie.depths[row].numpy()
    paths = (sorted(nodes.nonzero()[0], key=depths.__getitem__) for nodes in on_path)
    return [(), *(tuple(ids[path].tolist()) for path in paths)]


def probabilities(grids):
    """Those of the package and those by brute force, for a batch of grids as tokens."""
    tokens = sorted({token for grid in grids for ids in grid for token in ids})
    places, size = {token: place for place, token in enumerate(tokens)}, len(tokens) + 3
    grids = [tuple(tuple(places[token] for token in ids) for ids in grid) for grid in grids]
    trie = Trie.of(grids)
    logits = np.array(
        [
            [logits_after(row, beginning, size) for beginning in beginnings_of_nodes(trie, row)]
            for row in range(len(grids))
        ]
    )
    log_probs = trie.log_probs(torch.from_numpy(logits)).double().numpy()
    return np.exp(log_probs), np.array([brute_force(row, grid, size) for row, grid in enumerate(grids)])


# --- The test


@pytest.mark.parametrize("cases", [2500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_grids_are_exact_or_fail_with_the_documented_error(smollm2_tokenizer, cases):
    rng = random.Random(SEED)
    tokenizers = [(train(kind, rng, bos=bos), (1,) * bos) for kind in KINDS for bos in (False, True)]
    tokenizers += [(smollm2_tokenizer, ())] * 2
    counts, wrong = Counter(), []
    for case in range(cases):
        tokenizer, leading = tokenizers[case % len(tokenizers)]
        try:
            grid = NumberGrid(rng.choice(GRIDS)(rng))
        except ValueError as error:
            assert outcome_of(error) == "grid"
            continue
        contexts, number_end, targets = random_case(rng, tokenizer, grid)
        resolver = GridResolver(grid, tokenizer, number_end)
        resolved = resolver.resolve(contexts, targets)
        expected = Expectation(tokenizer, leading, grid, contexts, number_end, targets).rows
        numbers = set()
        for context, target, one, right in zip(contexts, targets, resolved, expected, strict=True):
            outcome = outcome_of(one)
            failed = isinstance(outcome, str)
            counts[outcome if failed else "resolved"] += 1
            if outcome != right or not (failed or is_cut_right(tokenizer, context, grid, number_end, one)):
                wrong.append((case, tokenizer.name_or_path, grid.texts, context, number_end, target, one, right))
            elif not failed:
                numbers.add(one.token_ids)
        if numbers:
            found, right = probabilities(sorted(numbers))
            np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-12, err_msg=f"case {case}")
            assert (found.sum(-1) <= 1 + 1e-6).all()
        if case % 10 == 0:
            resolver._is_local = False
            without_tails = resolver.resolve(contexts, targets)
            if list(map(str, without_tails)) != list(map(str, resolved)):
                wrong.append((case, tokenizer.name_or_path, grid.texts, contexts, number_end, resolved, without_tails))
    assert not wrong, f"{len(wrong)} wrong, such as:\n" + "\n".join(map(str, wrong[:5]))
    assert counts["resolved"] > counts.total() / 3
    assert all(counts[kind] >= 20 for kind in ("empty", "merges", "unknown", "split", "same", "overlap")), counts
