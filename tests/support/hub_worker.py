"""What test_hub.py runs in processes of their own, since huggingface_hub reads its settings when it is imported.

python hub_worker.py upload BASE FOLDER
python hub_worker.py download OUTPUT
"""

import json
import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from raft_peft import RegressionAwareTrainer, RegressionPredictor, TextRegressionPipeline
from support.training import config, lora

ROWS = [{"prompt": f"Rate item {index} | the score is", "label": float(index % 5)} for index in range(6)]
PROMPTS = [row["prompt"] for row in ROWS]


def upload(base, folder):
    """The base model, then an adapter on it: with each checkpoint, and in the end with its metrics."""
    AutoModelForCausalLM.from_pretrained(base).push_to_hub("me/base")
    AutoTokenizer.from_pretrained(base).push_to_hub("me/base")
    options = {"max_steps": 2, "learning_rate": 1e-2, "warmup_steps": 0, "save_strategy": "steps", "save_steps": 1}
    trainer = RegressionAwareTrainer(
        "me/base",
        config(folder, push_to_hub=True, hub_model_id="me/stars", hub_always_push=True, **options),
        grid=range(5),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS),
        peft_config=lora(),
    )
    trainer.train()
    trainer.evaluate()
    trainer.push_to_hub("Trained on six rows", dataset_name="me/reviews")
    return {"predictions": trainer.predict(Dataset.from_list(ROWS)).predictions.tolist()}


def download():
    """Predictions of the uploaded model, by its name."""
    predictor = RegressionPredictor.from_pretrained("me/stars")
    scorer = pipeline("text-regression", model="me/stars")
    assert isinstance(scorer, TextRegressionPipeline)
    return {
        "predictions": predictor.predict(PROMPTS).tolist(),
        "pipeline": [one["prediction"] for one in scorer(PROMPTS)],
    }


if __name__ == "__main__":
    action, *arguments, output = sys.argv[1:]
    found = {"upload": upload, "download": download}[action](*arguments)
    with open(output, "w") as file:
        json.dump(found, file)
