"""RAFT in a few minutes on a CPU: teach SmolLM2-135M a function of one number, read off a prompt.

    make demo

The task is the paper's synthetic *Original #1*. The model answers with a digit 0 to 9; its prediction is the expected
digit. Before training this is a guess. After training it follows the curve.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from embedded_model import embedded_model
from peft import LoraConfig
from transformers import set_seed

from raft_peft import RegressionAwareConfig, RegressionAwareTrainer, RegressionPredictor
from raft_peft.plots import plot_predictions
from raft_peft.tasks.synthetic import GRID, PROMPT, load_synthetic


def main(output_dir: Path, train_rows: int, test_rows: int, epochs: float) -> None:
    started = time.monotonic()
    set_seed(0)
    train, test = load_synthetic(train_rows, seed=0), load_synthetic(test_rows, seed=1)
    trainer = RegressionAwareTrainer(
        str(embedded_model()),
        RegressionAwareConfig(
            str(output_dir),
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=32,
            learning_rate=2e-3,
            gradient_checkpointing=False,
            padding_free=True,  # what all prompts begin with is computed once a batch
            save_strategy="no",
            report_to="none",
        ),
        grid=GRID,
        train_dataset=train,
        eval_dataset=test,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    before = trainer.predict(test)
    trainer.train()
    after = trainer.predict(test)
    trainer.save_model()

    picture = output_dir / "prediction_and_truth.png"
    plot_predictions(
        picture,
        test["label"],
        {"zero-shot": before.predictions, "after RAFT": after.predictions},
        title="Original #1, SmolLM2-135M-Instruct",
        x=test["x"],
        x_label="input score",
    )

    print(f"\n{'':<12}{'RMSE':>8}{'Pearson':>10}{'Spearman':>10}{'grid mass':>11}")
    for name, output in (("zero-shot", before), ("after RAFT", after)):
        rmse, pearson, spearman, mass = (
            output.metrics[f"test_{metric}"] for metric in ("rmse", "pearson", "spearman", "grid_mass")
        )
        print(f"{name:<12}{rmse:>8.3f}{pearson:>10.3f}{spearman:>10.3f}{mass:>11.3f}")

    # What a user of the saved folder sees: text in, numbers out.
    predictor = RegressionPredictor.from_pretrained(output_dir)
    inputs = [5.0, 50.0, 95.0]
    predictions = predictor.predict([PROMPT.format(x=f"{x:.2f}") for x in inputs])
    print(
        "\nThe saved folder predicts "
        + ", ".join(f"{y:.2f} at {x:g}" for x, y in zip(inputs, predictions, strict=True))
        + "."
    )
    minutes = (time.monotonic() - started) / 60
    print(f"Adapter: {output_dir}\nPicture: {picture}\nTime: {minutes:.1f} minutes")
    if not np.isfinite(predictions).all():
        raise SystemExit("The predictions are not finite.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo"))
    parser.add_argument("--train_rows", type=int, default=2000)
    parser.add_argument("--test_rows", type=int, default=300)
    parser.add_argument("--epochs", type=float, default=2)
    main(**vars(parser.parse_args()))
