"""A judge that writes its reasons and then a score, in the three steps of TRACT (Chiang et al., ACL 2025).

    python examples/judge_with_reasons.py --train_file train.jsonl --test_file test.jsonl

1. Train on reasonings and scores of a large model: cross-entropy on the reasoning, RAFT on the score behind it.
2. Let the trained model write its own reasonings for the same prompts.
3. Train the base model again, on these.

Each row has `instruction`, `response`, `reference`, `rubric`, several `ratings` from 1 to 5, and the `feedback` of
each rating. Without files, a few made-up rows show that it runs.

In step 1 a row becomes one example for each rating, since a feedback argues for its own rating: with the mean of all
as label, the model would learn scores that the text before them does not give reasons for. In step 3 and in the test
the label is the mean, since a reasoning of the model itself belongs to no single rater. A feedback whose last sentence
tells the score ("So the overall score is 4.") would teach the model to copy it, and is refused by the library: that
sentence is left out, or the whole feedback where it has no other.
"""

import json
import re
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from raft_peft import NumberGrid, RegressionAwareConfig, RegressionAwareTrainer, RegressionPredictor, reason_file
from raft_peft.data.reasoning.reasonings import SCORE_PREFIX, ScorePrefix, check_reasoning
from raft_peft.metrics import regression_metrics
from raft_peft.training.quantization import usual_dtype

GRID = NumberGrid(range(1, 6))
# After Prometheus (Kim et al., ICLR 2024).
PROMPT = """\
###Task: Write a feedback that assesses the response strictly by the rubric. Then write a score from 1 to 5, as \
"Feedback [RESULT] score".
###Instruction: {instruction}
###Response: {response}
###Reference answer (score 5): {reference}
###Rubric: {rubric}
###Feedback:"""


@dataclass
class ScriptArguments:
    train_file: str | None = field(
        default=None, metadata={"help": "JSON Lines of rows to train on. By default a few made-up rows."}
    )
    test_file: str | None = field(default=None, metadata={"help": "Rows to test on. By default those of training."})
    own_reasonings: int = field(default=4, metadata={"help": "Reasonings that the model writes for a row in step 2."})
    keep_within: float | None = field(
        default=1.0, metadata={"help": "Keep those whose score is at most so far from the mean rating."}
    )
    test_reasonings: int = field(default=5, metadata={"help": "Reasonings before each score of the test."})
    temperature: float = field(default=1.0, metadata={"help": "By which reasonings are drawn."})
    max_reasoning_tokens: int = field(default=256, metadata={"help": "The most tokens of a reasoning."})


# Good for LoRA on one GPU and for a small model on the CPU; each can be set on the command line.
DEFAULTS = {
    "model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "dtype": None,
    "use_peft": True,
    "lora_target_modules": ["all-linear"],
    "output_dir": "judge-with-reasons",
    "num_train_epochs": 2,
    "learning_rate": 5e-4,
    "max_length": 1536,
    "prompt_template": PROMPT,
    "score_prefix": SCORE_PREFIX,
    "report_to": "none",
}


def main(script_args: ScriptArguments, training_args: RegressionAwareConfig, model_args: ModelConfig) -> None:
    rows = made_up_rows() if script_args.train_file is None else read(script_args.train_file)
    test = rows if script_args.test_file is None else read(script_args.test_file)
    folder = Path(training_args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    judged = with_feedback(rows, training_args.score_prefix or SCORE_PREFIX)
    train(judged, training_args, folder / "first", model_args)
    first = RegressionPredictor.from_pretrained(folder / "first")
    lines = [f"{len(test)} test rows            RMSE  Pearson  Spearman  did not end"]
    lines += tested(first, test, "reasons of others", script_args)

    source, target = folder / "rows.jsonl", folder / "own_reasonings.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in with_mean(rows)), encoding="utf-8")
    # What another run has left there is of another model.
    target.unlink(missing_ok=True)
    reason_file(
        first,
        source,
        target,
        num_reasonings=script_args.own_reasonings,
        temperature=script_args.temperature,
        max_reasoning_tokens=script_args.max_reasoning_tokens,
        seed=training_args.seed,
        keep_within=script_args.keep_within,
    )
    del first
    own = [row for row in read(target) if row["reasoning"]]
    if own:
        train(own, training_args, folder / "second", model_args)
        lines += tested(
            RegressionPredictor.from_pretrained(folder / "second"), test, "reasons of its own", script_args
        )
    else:
        lines.append("No reasoning of its own was kept. Train the first step longer, or raise keep_within.")
    print("\n" + "\n".join(lines) + f"\n\nThe adapters and the reasonings are in {folder}.")


def train(
    rows: list[dict[str, Any]], training_args: RegressionAwareConfig, folder: Path, model_args: ModelConfig
) -> None:
    """Train the base model on rows with reasonings, and save it in a folder."""
    args = copy(training_args)
    args.output_dir = str(folder)
    set_seed(args.seed)
    quantization_config = get_quantization_config(model_args)
    dtype = model_args.dtype or usual_dtype(quantized=quantization_config is not None)
    args.model_init_kwargs = {"revision": model_args.model_revision, "dtype": dtype, **(args.model_init_kwargs or {})}
    trainer = RegressionAwareTrainer(
        model_args.model_name_or_path,
        args,
        grid=GRID,
        train_dataset=Dataset.from_list(rows),
        quantization_config=quantization_config,
        peft_config=get_peft_config(model_args),
    )
    trainer.train()
    trainer.save_model()
    trainer.end()


def tested(
    predictor: RegressionPredictor, test: list[dict[str, Any]], name: str, script_args: ScriptArguments
) -> list[str]:
    """Lines of a table: the error with one reasoning before each score, and with several."""
    lines = []
    rows = [without_feedback(row) for row in test]
    for count in dict.fromkeys((1, script_args.test_reasonings)):
        found = predictor.predict_with_reasons(
            rows,
            count,
            temperature=script_args.temperature,
            max_reasoning_tokens=script_args.max_reasoning_tokens,
            seed=0,
        )
        metrics = regression_metrics(found.predictions, [mean(row["ratings"]) for row in test])
        rmse, pearson, spearman = (metrics[one] for one in ("rmse", "pearson", "spearman"))
        lines.append(f"{name}, {count:<3} {rmse:7.3f}  {pearson:7.3f}  {spearman:8.3f}  {found.unfinished.sum():11}")
    return lines


def with_feedback(rows: Iterable[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    """A row for each rating, with its feedback as the reasoning and the rating as the label."""
    found, shortened, dropped = [], 0, 0
    for row in rows:
        for rating, feedback in zip(row["ratings"], row["feedback"], strict=True):
            reasoning = without_score(feedback, ScorePrefix(prefix))
            shortened += reasoning not in (None, feedback)
            dropped += reasoning is None
            if reasoning is not None:
                found.append({**without_feedback(row), "reasoning": reasoning, "label": float(rating)})
    print(f"{len(found)} feedbacks; {shortened} lost a last sentence that told the score, {dropped} were dropped.")
    return found


def without_score(feedback: str, prefix: ScorePrefix) -> str | None:
    """A feedback without a last sentence that tells the score; None where nothing is left or it is told elsewhere."""
    sentences = re.split(r"(?<=[.!?])\s+", feedback.strip())
    for kept in (feedback.strip(), " ".join(sentences[:-1])):
        try:
            check_reasoning(kept, prefix, GRID)
        except ValueError:
            continue
        return kept or None
    return None


def with_mean(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without feedback, with their mean rating as the label."""
    return [{**without_feedback(row), "label": mean(row["ratings"])} for row in rows]


def without_feedback(row: dict[str, Any]) -> dict[str, Any]:
    """What a prompt is written from."""
    return {name: row[name] for name in ("instruction", "response", "reference", "rubric")}


def mean(ratings: list[float]) -> float:
    return sum(ratings) / len(ratings)


def read(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def made_up_rows() -> list[dict[str, Any]]:
    """Six sums, right or wrong."""
    return [
        {
            "instruction": f"What is {left} + 2?",
            "response": str(left + 2 + error),
            "reference": str(left + 2),
            "rubric": "Is the sum right? 1: no. 5: yes.",
            "ratings": [5 - 2 * error, 5 - 2 * error, 4 - error],
            "feedback": [
                f"The sum is {'wrong' if error else 'right'}.",
                f"It says {left + 2 + error}, and {left} + 2 is {left + 2}. The score is {5 - 2 * error}.",
                f"Short, and {'not ' * error}right.",
            ],
        }
        for left in (1, 4, 6)
        for error in (0, 1)
    ]


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, RegressionAwareConfig, ModelConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
