"""Fine-tune a language model with RAFT to score the similarity of two sentences (STS-B).

    accelerate launch examples/finetune_stsb.py
    accelerate launch examples/finetune_stsb.py --model_name_or_path google/gemma-2-2b --load_in_4bit
    accelerate launch examples/finetune_stsb.py --grid 0..5 --granularity 0.1 --number_tokens average

Every setting of RegressionAwareConfig and of TRL's ModelConfig is an option; see --help.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from raft_peft import NumberGrid, RegressionAwareConfig, RegressionAwareTrainer, add_number_tokens
from raft_peft.tasks.stsb import load_stsb
from raft_peft.training.quantization import usual_dtype


@dataclass
class ScriptArguments:
    grid: str = field(
        default="1..5",
        metadata={
            "help": "The numbers that the model may answer with. 1..5 is the paper's: what is off the grid counts as "
            "0, so 0 can be reached. 0..5 is the whole scale."
        },
    )
    granularity: float = field(
        default=1.0, metadata={"help": "Distance of the grid's numbers: 1, or below it numbers of several tokens."}
    )
    number_tokens: str | None = field(
        default=None,
        metadata={
            "help": "Give each number a token of its own, whose embedding starts as this: zero, first, average or "
            "random. By default numbers are written with the tokens that there are."
        },
    )
    dataset_path: str | None = field(
        default=None,
        metadata={"help": "Folder with train.csv and dev.csv (sentence 1, sentence 2, score). By default the Hub."},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many pairs, drawn at random. By default on all."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Validate and test on this many pairs each. By default on all."}
    )


# Good for LoRA on one GPU and for a small model on the CPU; each can be set on the command line.
DEFAULTS = {
    "model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "dtype": None,
    "use_bnb_nested_quant": True,
    "use_peft": True,
    "lora_target_modules": ["all-linear"],
    "output_dir": "stsb-raft",
    "num_train_epochs": 1,
    "learning_rate": 1e-3,
    "report_to": "none",
}


def main(script_args: ScriptArguments, training_args: RegressionAwareConfig, model_args: ModelConfig) -> None:
    dataset = load_stsb(script_args.dataset_path, seed=training_args.seed)
    for split, limit in (
        ("train", script_args.max_train_samples),
        ("validation", script_args.max_eval_samples),
        ("test", script_args.max_eval_samples),
    ):
        if limit is not None:
            shuffled = dataset[split].shuffle(seed=training_args.seed)
            dataset[split] = shuffled.select(range(min(limit, len(shuffled))))

    if model_args.dtype is None:
        model_args.dtype = usual_dtype(quantized=model_args.load_in_4bit or model_args.load_in_8bit)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    quantization_config = get_quantization_config(model_args)
    model: Any = model_args.model_name_or_path
    tokenizer = None
    grid = NumberGrid.parse(script_args.grid)
    ends = (min(grid.values), max(grid.values))
    if script_args.granularity != 1:
        grid = NumberGrid.spaced(*ends, script_args.granularity)
    if script_args.number_tokens is not None:
        model, tokenizer = load_model_and_tokenizer(model, training_args.model_init_kwargs, quantization_config)
        grid = add_number_tokens(
            model, tokenizer, ends, granularity=script_args.granularity, init=script_args.number_tokens
        )
        quantization_config = None
    trainer = RegressionAwareTrainer(
        model,
        training_args,
        grid=grid,
        processing_class=tokenizer,
        train_dataset=dataset["train"],
        eval_dataset=dataset["validation"],
        quantization_config=quantization_config,
        peft_config=get_peft_config(model_args),
    )
    zero_shot = trainer.evaluate(dataset["test"], metric_key_prefix="zero_shot")
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    fine_tuned = trainer.evaluate(dataset["test"], metric_key_prefix="fine_tuned")
    trainer.save_model()

    lines = [f"{len(dataset['test'])} test pairs       RMSE  Pearson  Spearman"]
    for name, metrics, prefix in (
        ("zero-shot RAIL", zero_shot, "zero_shot"),
        ("RAFT fine-tuned", fine_tuned, "fine_tuned"),
    ):
        rmse, pearson, spearman = (metrics[f"{prefix}_{metric}"] for metric in ("rmse", "pearson", "spearman"))
        lines.append(f"{name:<18} {rmse:7.3f}  {pearson:7.3f}  {spearman:8.3f}")
    trainer.accelerator.print("\n" + "\n".join(lines) + f"\n\nThe adapter is in {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name="nyu-mll/glue")
    trainer.end()


def load_model_and_tokenizer(name: str, init_kwargs: dict[str, Any], quantization_config: Any) -> tuple[Any, Any]:
    """A model that is changed before it is trained is loaded by hand."""
    init_kwargs = dict(init_kwargs)
    if quantization_config is not None:
        init_kwargs["quantization_config"] = quantization_config
    tokenizer = AutoTokenizer.from_pretrained(name, revision=init_kwargs.get("revision"))
    return AutoModelForCausalLM.from_pretrained(name, **init_kwargs), tokenizer


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, RegressionAwareConfig, ModelConfig))
    parser.set_defaults(**DEFAULTS)
    main(*parser.parse_args_and_config())
