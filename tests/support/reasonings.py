"""Rows with reasonings, as the tests use them, and what a model says of them by its full logits."""

import torch

SCORE_PREFIX = "\n[RESULT] "


def reasoned_rows():
    """Eight rows: with one reasoning, several, and none."""
    return [
        {"prompt": "Rate tea, and say why:", "reasoning": ["It is hot.", "Nobody dislikes it much."], "label": 3.5},
        {"prompt": "Rate a cup of very hot tea, and say why:", "reasoning": ["Too hot to drink."], "label": 1.0},
        {"prompt": "Rate soup, and say why:", "reasoning": None, "label": 2.0},
        {"prompt": "Rate it, and say why:", "reasoning": ["It", "It is fine", "It is fine as it is"], "label": 0.5},
        {"prompt": "Rate the long and winding item 27, and say why:", "reasoning": ["Long. Winding."], "label": 4.0},
        {"prompt": "Rate 1, and say why:", "reasoning": ["One is a number"], "label": 1.0},
        {"prompt": "Rate a, and say why:", "reasoning": None, "label": 0.0},
        {"prompt": "Rate item 3, and say why:", "reasoning": ["Third of all.", "So what?"], "label": 3.0},
    ]


def read_by_hand(model, tokenizer, prompt, reasoning, texts, *, separator=" "):
    """What a model says behind a reasoning, of one sequence at a time.

    Returns:
        log p of each text, log p of each token of the reasoning and of the words behind it, and the logits where the
        text begins.
    """
    words = SCORE_PREFIX.rstrip()
    behind = words if reasoning is None else f"{separator}{reasoning}{words}"
    start, ids = (len(tokenizer(text)["input_ids"]) for text in (prompt, prompt + behind))
    log_probs = []
    for text in texts:
        whole = tokenizer(f"{prompt}{behind} {text}", return_tensors="pt")["input_ids"]
        assert tokenizer.decode(whole[0, :ids]) == prompt + behind
        logits = model(input_ids=whole).logits[0].float()
        of_tokens = logits[:-1].log_softmax(-1).gather(1, whole[0, 1:, None]).squeeze(1)
        log_probs.append(of_tokens[ids - 1 :].sum())
    return torch.stack(log_probs), of_tokens[start - 1 : ids - 1], logits[ids - 1]
