"""Rows of typed questions, of every type, with targets that follow from the text."""

QUESTIONS = {
    "anger": {"type": "score", "instructions": "How angry is it?", "criteria": ["calm", "annoyed", "furious"]},
    "spam": {"type": "noul", "instructions": "Is it spam?"},
    "kind": {"type": "choice", "instructions": "What is it?", "criteria": ["letter", "bill"]},
    "price": {"type": "number", "instructions": "What does it cost?", "criteria": [0, 5, 10, 50]},
}
STATES = ["fine day", "well, no", "not again! I have had enough of it"]


def question_rows(count=8):
    """Rows whose last question has no target in every other row, and whose first has ratings in every third."""
    rows = []
    for index in range(count):
        kind = index % 3
        targets = {"anger": [2, 1] if kind == 2 else kind, "spam": kind == 1, "kind": {"letter": 0.8, "bill": 0.2}}
        if index % 2:
            targets["price"] = [0, 7.5, 50][kind]
        rows.append({"state": f"Item {index}: {STATES[kind]}", "questions": QUESTIONS, "targets": targets})
    return rows
