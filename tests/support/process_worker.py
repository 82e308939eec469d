"""What each process of a test with several does: train, evaluate, predict and save, for each of some jobs.

    accelerate launch ... tests/support/process_worker.py FOLDER JOBS

The folder holds the model; a job is a dict of `name`, `per_step`, the rows of an optimizer step over all processes,
and arguments of the trainer and its settings.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer

ROWS = [
    {"prompt": f"Rate {'very ' * (i % 4)}item {i * 3} from 0 to 4, the score is", "label": (i % 9) / 2}
    for i in range(26)
]

# "yes" and "no" would be several tokens of the tokenizer here, which has one for each byte.
QUESTIONS = {
    "size": {"type": "score", "instructions": "How large is it?", "criteria": ["small", "large", "huge"]},
    "kind": {"type": "choice", "instructions": "What is it?", "criteria": ["plant", "tool"]},
    "price": {"type": "number", "instructions": "What does it cost?", "criteria": [0, 5, 10]},
    "age": {"type": "number", "instructions": "How old is it?", "criteria": [1, 2]},
}
TARGETS = {"size": [0.5, 2, 1, 0], "kind": ["tool", "plant"], "price": [0, 5, 7.5], "age": [2]}
# Three questions in every third row, one in most others; and one that a single row asks.
ASKED = [["size", "kind", "price"] if i % 3 == 0 else ["kind", "size"][i % 2 :] for i in range(25)] + [["age", "size"]]


def question_row(index: int) -> dict:
    row = {
        "state": f"Item {index * 3} {'very ' * (index % 4)}",
        "questions": {name: QUESTIONS[name] for name in ASKED[index]},
        "targets": {name: TARGETS[name][index % len(TARGETS[name])] for name in ASKED[index]},
    }
    return {name: json.dumps(value) for name, value in row.items()}


REASONED_ROWS = [
    {**row, "reasoning": [None, ["It is so."], ["Far too small.", "Too small"], ["a", "b c", "d"]][index % 4]}
    for index, row in enumerate(ROWS)
]
QUESTION_ROWS = [question_row(index) for index in range(26)]


def run(folder: Path, job: dict, processes: int, rank: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = {
        # Told to use the CPU, accelerate would leave DeepSpeed alone
        **({"ddp_backend": "gloo"} if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" else {"use_cpu": True}),
        "bf16": False,
        "learning_rate": 1e-3,
        "adam_epsilon": 1e-6,  # by the usual one, a gradient that is nothing but rounding moves a weight
        "max_steps": 7,
        "logging_steps": 1,
        "per_device_train_batch_size": job["per_step"] // processes,
        "per_device_eval_batch_size": 4,
        "gradient_checkpointing": False,
        "padding_free": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **job.get("settings", {}),
    }
    settings["per_device_train_batch_size"] //= settings.get("gradient_accumulation_steps", 1)
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)
    # Each process has a folder of its own here, so that what one writes is seen.
    args = RegressionAwareConfig(str(folder / job["name"] / str(rank)), **settings)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # Accelerate offers FSDP on accelerators alone, and asks this whether there are any; over gloo it is the same
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    torch.manual_seed(0)
    quantization = {}
    if job.get("quantized"):
        # Stored as float32, since FSDP and ZeRO-3 flatten parameters of one dtype together
        quantization["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.float32
        )
    asks_questions = "question_template" in settings
    rows = Dataset.from_list(QUESTION_ROWS if asks_questions else REASONED_ROWS if "reasonings" in settings else ROWS)
    trainer = RegressionAwareTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32", **quantization),
        args,
        grid=None if asks_questions else job.get("grid", [0, 1, 2, 3, 4]),
        processing_class=tokenizer,
        train_dataset=rows,
        peft_config=lora if job.get("lora", True) else None,
    )
    trainer.train(resume_from_checkpoint=str(folder / job["from"]) if "from" in job else False)
    metrics = trainer.evaluate(rows)
    predictions = trainer.predict(rows).predictions
    if asks_questions:
        predictions = predictions["predictions"][predictions["question"] >= 0]
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = {"losses": losses, "metrics": metrics, "predictions": predictions.tolist()}
    result["engine"] = str(trainer.accelerator.distributed_type)
    (folder / f"{job['name']}-{rank}.json").write_text(json.dumps(result))


def main() -> None:
    folder, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    # Every job ends with a garbage collection, which would look at all that the libraries loaded each time.
    gc.freeze()
    for job in jobs:
        run(folder, job, processes, rank)


if __name__ == "__main__":
    main()
