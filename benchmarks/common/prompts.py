"""Prompts to time with, made on the spot: of the lengths of real ones, so that they cost what real ones cost."""

import random

from raft_peft.tasks.stsb import PROMPT

WORDS = "a the man dog child plays sits on in near small red guitar piano street says that officials of new".split()  # noqa: SIM905
# Deciles of the words in a sentence of STS-B's training set.
SENTENCE_WORDS = [5, 6, 7, 8, 9, 10, 11, 14, 18, 23, 30]


def like_stsb(count: int, seed: int = 0) -> list[str]:
    """Prompts of pairs of sentences, about as long as those of STS-B."""
    draw = random.Random(seed)
    prompts = []
    for _ in range(count):
        decile = draw.randrange(10)
        first, second = (sentence(draw, draw.randint(*SENTENCE_WORDS[decile : decile + 2])) for _ in range(2))
        prompts.append(PROMPT.format(sentence1=first, sentence2=second))
    return prompts


def like_a_judges(count: int, rubric_words: int = 490, answer_words: int = 145, seed: int = 0) -> list[str]:
    """Prompts of a rubric, the same in all, and an answer to be judged by it: about 500 and 150 tokens."""
    draw = random.Random(seed)
    rubric = sentence(draw, rubric_words)
    answers = [sentence(draw, draw.randint(answer_words // 2, answer_words * 3 // 2)) for _ in range(count)]
    return [f"{rubric}\n\nAnswer: {answer}\n\nScore from 0 to 5:" for answer in answers]


def sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=words)) + "."
