"""Ten thousand random grids against random tokenizers: the exact tokens, or the documented error; no wrong number."""

import math
import re
from collections import defaultdict

import numpy as np
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
from raft_peft.number_end import NumberEnd
from raft_peft.resolution import Context, default_separator
from raft_peft.trie import Trie

CASES = 10_000
SPECIAL = ["<unk>", "<bos>", "<eos>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
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
    "review",
    "hotel",
    "between",
    "and",
    "out",
    "answer",
]

# What the errors say: the thing, and the cure.
ERRORS = {
    "empty": r"The prompt is empty\. The model needs a text",
    "merges": r"The number '.+' merges into the end of the prompt .+End the prompt with a space",
    "unknown": r"no token for the grid text .+ after .+Choose values that it can write, or give them other texts",
    "same": r"The grid texts .+ and .+ are the same tokens .+Give them texts that differ",
    "overlap": r"The grid text .+ with its end .+ is the beginning of another, .+Set `number_end` to 'grid'",
    "target": r"The target's text begins inside the prompt .+Scale the labels .+, or set another separator",
}

# --- Random tokenizers

THREES = r"\p{N}{1,3}"
RIGHT_TO_LEFT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


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
        vocab_size=259 + rng.choice([0, 10, 50, 150, 400, 900]),
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
    """Merges of characters; those that the corpus lacks are unknown, or dropped where there is no such token."""
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
    "characters, without unknown": lambda rng: characters(rng, unk_token=None),
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
    AddedToken("\n\n"),
    AddedToken("-----"),
    AddedToken("is 5"),
    AddedToken("the score is a star of the item: 7"),
    AddedToken("<n>", rstrip=True),
    AddedToken("<|end|>", lstrip=True, special=True),
]


def train(kind, rng):
    tokenizer, trainer = KINDS[kind](rng)
    tokenizer.train_from_iterator(corpus(rng), trainer)
    bos = rng.random() < 0.4
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A" + rng.choice(["", " <eos>"]), special_tokens=[("<bos>", 1), ("<eos>", 2)]
        )
    unk = rng.choice(["<unk>", "<eos>"]) if kind.startswith("byte-level") else "<unk>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unk, bos_token="<bos>", eos_token="<eos>"
    )
    if rng.random() < 0.4:
        tokenizer.add_tokens(rng.sample(ADDED, rng.randint(1, 4)))
    return tokenizer, (1,) if bos else ()


# --- Random grids


def numbers_in_words(rng):
    return {index: word for index, word in enumerate(rng.sample(WORDS, rng.randint(2, 8)))}


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
    numbers_in_words,
    lambda rng: [rng.uniform(-1000, 1000) for _ in range(rng.randint(2, 8))],
    lambda rng: [rng.randint(0, 10 ** rng.randint(1, 12)) for _ in range(6)],
    lambda rng: numbered(f"{rng.choice(WORDS)} {rng.choice(WORDS)}" for _ in range(5)),
    lambda rng: numbered([" 1", "1", "2 ", " 2", "1 0", "10"][: rng.randint(2, 6)]),
    lambda rng: numbered(f"{index:02d}" for index in range(12)),
    lambda rng: numbered(str(index)[::-1] for index in range(95, 125)),
    lambda rng: numbered(rng.choice(".-=*0 1") * rng.randint(1, 12) + rng.choice("15") for _ in range(4)),
    lambda rng: numbered("0" * length for length in range(1, rng.randint(3, 6))),
    lambda rng: numbered(rng.sample(["１", "1", "٣", "三", "é", "😀", "½", "Ⅳ", "ß", "評価", "1e3"], 4)),
    lambda rng: numbered(f"{index}%" for index in range(0, 101, 10)),
    lambda rng: numbered("".join(rng.choices("01.,- a", k=rng.randint(1, 5))) + "0" for _ in range(5)),
]
ENDINGS = [
    *["", "", ":", ": ", ":\n", " ", "  ", "\n", "\n\n", " (", "(", " [", '"', "$", " $", "€", " -", "<n>", "<|end|>"],
    *["5", " 27", " 1", "0.", " 10", "評価", "оценка ", "é", "😀", " 😀 ", "-----", " ----------", "....", "=" * 40],
    *[
        "0" * 30,
        "7" * 31,
        " 12" + "0" * 20,
        "1234567" * 5,
        " " * 25,
        "-" * 95,
        "\t",
        " the score is a star of the item:",
    ],
    *["<eos>", "a" * 60, "\u00a0", " ,", "x" * 120],
]
OPENINGS = [
    "",
    "Rate it. ",
    "<bos>",
    "Review 12: very good!\n",
    "評価 ",
    "  ",
    "It's $5.00, or 1,000 stars. ",
    "A\n\n",
]
NUMBER_ENDS = [".", "\n", " stars", ",", ")", "0", "<|end|>", " ", "%"]


def random_prompts(rng):
    shared = " ".join(rng.choices(WORDS, k=rng.choice([0, 1, 3, 12]))) + rng.choice(ENDINGS)
    prompts = [rng.choice(OPENINGS) + shared for _ in range(2)]
    prompts.append(rng.choice(OPENINGS) + rng.choice(WORDS) + str(rng.randint(0, 999)) + rng.choice(ENDINGS))
    if rng.random() < 0.02:
        prompts.append(rng.choice(["", " ", "\n"]))
    return prompts


def random_end(rng, tokenizer):
    every_number = rng.random() < 0.3
    name = rng.choice(["grid", "grid", "grid", "eos", *rng.sample(NUMBER_ENDS, 2)])
    return NumberEnd.of(name, tokenizer, every_number=every_number)


# --- What must come out, by other code than the package's


def is_beginning(one, other):
    return other[: len(one)] == one and len(other) > len(one)


class Expectation:
    """The tokens of each number in each context, from the tokenizer's own encoding of every whole sentence."""

    def __init__(self, tokenizer, leading, contexts, texts, number_end, targets):
        self.tokenizer, self.leading, self.texts, self.end = tokenizer, leading, texts, number_end
        self.unk = tokenizer.unk_token_id
        sentences = [
            context.opening + text
            for context, target in zip(contexts, targets, strict=True)
            for text in ("", *texts, target)
        ]
        encoded = self.encode(sentences)
        size = len(texts) + 2
        self.rows = [
            self.of_row(context, encoded[row * size : (row + 1) * size]) for row, context in enumerate(contexts)
        ]

    def encode(self, texts):
        backend = self.tokenizer.backend_tokenizer
        return [tuple(one.ids) for one in backend.encode_batch(texts, add_special_tokens=False)]

    def of_row(self, context, encoded):
        opening, *plain, target = encoded
        if not context.text.strip():
            return "empty"
        outcome = self.numbers(opening, plain, self.texts)
        if isinstance(outcome, str) or self.end == NumberEnd():
            return self.with_target(outcome, target)
        prompt, numbers = outcome
        beginnings = {number[:length] for number in numbers for length in range(len(number))}
        ended = [self.end.every_number or number in beginnings for number in numbers]
        if self.end.text:
            texts = [text + self.end.text * end for text, end in zip(self.texts, ended, strict=True)]
            outcome = self.numbers(opening, self.encode([context.opening + text for text in texts]), texts)
            if isinstance(outcome, str):
                return outcome
            prompt, numbers = outcome
        else:
            numbers = [number + (self.end.token_id,) * end for number, end in zip(numbers, ended, strict=True)]
        if any(is_beginning(one, other) for one in numbers for other in numbers):
            return "overlap"
        return self.with_target((prompt, numbers), target)

    def numbers(self, opening, sentences, texts):
        length = len(opening)
        while any(ids[:length] != opening[:length] for ids in sentences):
            length -= 1
        if self.tokenizer.decode(opening[length:]).strip():
            return "merges"
        numbers = [ids[length:] for ids in sentences]
        unknown = [
            self.unk in ids and self.tokenizer.unk_token not in text for ids, text in zip(numbers, texts, strict=True)
        ]
        if not all(numbers) or any(unknown):
            return "unknown"
        return "same" if len(set(numbers)) < len(numbers) else (opening[:length], numbers)

    def with_target(self, outcome, target):
        if isinstance(outcome, str):
            return outcome
        prompt, numbers = outcome
        if not is_beginning(prompt, target):
            return "target"
        bare = prompt[: len(self.leading)] == self.leading
        return (prompt if bare else self.leading + prompt), tuple(numbers), target[len(prompt) :]


TABLE = 3 * np.random.default_rng(0).normal(size=(4093, 512))


def log_softmax_of(prefix, size):
    """The next token's log-probabilities after any beginning: random, but always the same."""
    logits = TABLE[hash(prefix) % len(TABLE), :size].astype(np.float32).astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


def brute_force(numbers, size):
    goes_on = defaultdict(set)
    for number in numbers:
        for index, token in enumerate(number):
            goes_on[number[:index]].add(token)
    following = {beginning: log_softmax_of(beginning, size) for beginning in {*goes_on, *numbers}}
    result = []
    for number in numbers:
        log_prob = sum(following[number[:index]][token] for index, token in enumerate(number))
        rest = 1 - sum(math.exp(following[number][token]) for token in goes_on.get(number, ()))
        result.append(log_prob + math.log(rest))
    return np.array(result)


def beginnings_of_nodes(trie, row):
    """The tokens before each node of a row, the root first, by what the trie itself says of its nodes."""
    on_path, ids, depths = trie.ancestors[row].numpy(), trie.node_ids[row].numpy(), trie.depths[row].numpy()
    paths = (sorted(nodes.nonzero()[0], key=depths.__getitem__) for nodes in on_path)
    return [(), *(tuple(ids[path].tolist()) for path in paths)]


def check_probabilities(grids):
    places = {
        token: place for place, token in enumerate(sorted({token for grid in grids for ids in grid for token in ids}))
    }
    size = len(places) + 3
    assert size <= TABLE.shape[1]
    grids = [tuple(tuple(places[token] for token in ids) for ids in grid) for grid in grids]
    trie = Trie.of(grids)
    logits = np.stack(
        [
            np.stack([TABLE[hash(beginning) % len(TABLE), :size] for beginning in beginnings_of_nodes(trie, row)])
            for row in range(len(grids))
        ]
    )
    log_probs = trie.log_probs(torch.from_numpy(logits)).numpy()
    expected = np.stack([brute_force(grid, size) for grid in grids])
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5, atol=1e-5)
    assert (np.exp(log_probs.astype(np.float64)).sum(-1) <= 1 + 1e-6).all()


def check_text(tokenizer, context, resolved, texts):
    """Nothing of the number stands in the prompt, and nothing but white space of the prompt in the number."""
    before = tokenizer.decode(resolved.prompt_ids)
    for text, ids in zip(texts, resolved.token_ids, strict=True):
        whole = tokenizer.decode([*resolved.prompt_ids, *ids])
        assert whole.startswith(before)


def kind_of(error):
    assert type(error) is ValueError
    kinds = [kind for kind, message in ERRORS.items() if re.search(message, str(error), re.DOTALL)]
    assert len(kinds) == 1, str(error)
    return kinds[0]


def random_case(rng, tokenizer):
    grid = NumberGrid(rng.choice(GRIDS)(rng))
    separator = rng.choice([None, None, None, None, "", "", " ", "\n", ": "])
    contexts = [
        Context(prompt, default_separator(prompt) if separator is None else separator)
        for prompt in random_prompts(rng)
    ]
    return (
        grid,
        contexts,
        random_end(rng, tokenizer),
        [rng.choice(grid.texts) + rng.choice(["", "5"]) for _ in contexts],
    )
