"""Predict a number for each row of a large dataset with Ray Data, on one machine or a cluster.

    pip install 'ray[data]'
    python examples/predict_with_ray.py --model stars-raft --source reviews/ --output stars/ --actors 8

Reads JSON Lines with a `prompt` in each row (text, or a list of chat messages) and writes the rows with their
`prediction` as Parquet, in no fixed order. Each actor holds one `RegressionPredictor` on one GPU for as long as the
run lasts; with `--gpus_per_actor 0` it is on the CPU. Model, source and output must be reachable from every machine: a
shared folder, or `s3://` and the like for the data and the Hub for the model.
"""

import argparse

import pyarrow as pa  # type: ignore[import-untyped]
import ray  # type: ignore[import-not-found]

from raft_peft import RegressionPredictor


class Predict:
    """Adds the column `prediction` to batches of rows; an actor makes one and keeps it."""

    def __init__(self, model: str):
        self.predictor = RegressionPredictor.from_pretrained(model)

    def __call__(self, batch: pa.Table) -> pa.Table:
        numbers = self.predictor.predict(batch["prompt"].to_pylist(), show_progress=False)
        return batch.append_column("prediction", pa.array(numbers))


def main(model: str, source: str, output: str, actors: int, gpus_per_actor: float, batch_size: int) -> None:
    rows = ray.data.read_json(source, lines=True)
    predicted = rows.map_batches(
        Predict,
        fn_constructor_args=(model,),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=gpus_per_actor,
        batch_size=batch_size,
        batch_format="pyarrow",
    )
    predicted.write_parquet(output, mode=ray.data.SaveMode.ERROR)  # instead of adding to what is there


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub repository of a trained model.")
    parser.add_argument("--source", required=True, help="A file or folder of JSON Lines.")
    parser.add_argument("--output", required=True, help="The folder to write; it must not exist.")
    parser.add_argument("--actors", type=int, default=1, help="How many predictors, each on a GPU of its own.")
    parser.add_argument("--gpus_per_actor", type=float, default=1, help="1, or 0 for the CPU.")
    parser.add_argument("--batch_size", type=int, default=4096, help="Rows that are sorted by length together.")
    main(**vars(parser.parse_args()))
