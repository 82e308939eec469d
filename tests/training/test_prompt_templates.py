"""The prompt belongs to the model: written in training, saved, and written alike in prediction."""

import json

import pytest
from support.training import make

from raft_peft import RegressionPredictor

ROWS = [{"text": f"item number {number}", "kind": "tool", "label": float(number % 5)} for number in range(10)]
TEMPLATE = "Rate {text}, the score is"


def trained(model, tokenizer, folder, rows=ROWS, **options):
    trainer = make(model, tokenizer, folder, rows, options={"max_steps": 1, **options})
    trainer.train()
    trainer.save_model()
    return json.loads((folder / "raft_config.json").read_text())


def test_rows_are_predicted_by_the_template_of_training(tiny_llama, tokenizer, tmp_path, caplog):
    saved = trained(tiny_llama, tokenizer, tmp_path, prompt_template=TEMPLATE)
    assert saved["prompt_template"] == TEMPLATE
    assert saved["prompt_shape"] == "Rate item number ... the score is"
    predictor = RegressionPredictor.from_pretrained(tmp_path)
    prompts = [TEMPLATE.format(**row) for row in ROWS]
    assert (predictor.predict(ROWS) == predictor.predict(prompts)).all()
    assert "look like those of training" not in caplog.text
    predictor.predict(["How good is item number 7?"])
    assert "1 of the first 1 prompts do not look like those of training" in caplog.text
    caplog.clear()
    other = RegressionPredictor.from_pretrained(tmp_path, prompt_template="Grade {text}:")
    assert "was trained with the prompt template 'Rate {text}, the score is'" in caplog.text
    assert (other.predict(ROWS) == predictor.predict([f"Grade {row['text']}:" for row in ROWS])).all()
    card = (tmp_path / "README.md").read_text()
    assert '{"text": "..."}' in card
    assert TEMPLATE in card


def test_chats_from_columns(tiny_llama, tokenizer, tmp_path):
    saved = trained(tiny_llama, tokenizer, tmp_path, prompt_template="Rate {text}.", system="You know {kind}s.")
    assert saved["prompt_template"] == [
        {"role": "system", "content": "You know {kind}s."},
        {"role": "user", "content": "Rate {text}."},
    ]
    predictor = RegressionPredictor.from_pretrained(tmp_path)
    chats = [
        [
            {"role": "system", "content": "You know tools."},
            {"role": "user", "content": f"Rate {row['text']}."},
        ]
        for row in ROWS
    ]
    assert (predictor.predict(ROWS) == predictor.predict(chats)).all()


def test_a_column_of_prompts_as_chats(tiny_llama, tokenizer, tmp_path):
    rows = [{"prompt": TEMPLATE.format(**row), "label": row["label"]} for row in ROWS]
    trained(tiny_llama, tokenizer, tmp_path, rows, chat=True)
    predictor = RegressionPredictor.from_pretrained(tmp_path)
    texts = [row["prompt"] for row in rows]
    assert (
        predictor.predict(texts) == predictor.predict([[{"role": "user", "content": text}] for text in texts])
    ).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_template": "Rate {body}:"}, "the column 'body', and the row has the columns"),
        ({"prompt_template": "Rate it:"}, "must name columns in braces"),
        ({"prompt_template": [{"role": "user", "content": "{text}"}], "chat": True}, "a chat already"),
    ],
)
def test_templates_that_do_not_fit(tiny_llama, tokenizer, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(tiny_llama, tokenizer, tmp_path, ROWS, options=options)
