"""Rows with reasonings, as the tests use them."""

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
