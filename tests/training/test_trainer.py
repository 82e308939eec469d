import json
import logging
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from support.training import GRID, config, lora, make
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer, EvalPrediction, TrainerCallback
from transformers.trainer_utils import PredictionOutput
from trl import SFTConfig

from raft_peft import NumberGrid, RegressionAwareConfig, RegressionAwareTrainer, RegressionPredictor
from raft_peft.grid.resolution import resolve

METRICS = ["rmse", "mae", "pearson", "spearman", "grid_mass", "loss"]


def full_logits_by_hand(model, tokenizer, prompt, grid=GRID):
    """p(y | x) for the grid from the logits of the whole sequence, for one row alone; " 3" is one token here."""
    ids = torch.tensor([tokenizer(prompt).input_ids])
    with torch.no_grad():
        probabilities = model(ids).logits.double().softmax(-1)[0, -1]
    return probabilities[tokenizer.convert_tokens_to_ids([f"Ġ{y}" for y in grid])]


class TestPrediction:
    @pytest.mark.parametrize("padding_side", ["left", "right"])
    @pytest.mark.parametrize("batch_size", [1, 7])
    @pytest.mark.parametrize("pad_is_eos", [False, True])
    def test_equals_the_full_logits(self, tiny_llama, tokenizer, tmp_path, rows, padding_side, batch_size, pad_is_eos):
        tokenizer.padding_side = padding_side
        if pad_is_eos:
            tokenizer.pad_token = tokenizer.eos_token
        expected = [full_logits_by_hand(tiny_llama, tokenizer, row["prompt"]) for row in rows]
        trainer = make(tiny_llama, tokenizer, tmp_path, options={"per_device_eval_batch_size": batch_size})
        output = trainer.predict(Dataset.from_list(rows))
        by_hand = [sum(y * p.item() for y, p in zip(GRID, row, strict=True)) for row in expected]
        np.testing.assert_allclose(output.predictions, by_hand, atol=1e-5)
        np.testing.assert_allclose(output.distribution.probs, torch.stack(expected), atol=1e-5)

    def test_without_a_dataset_it_evaluates_and_predicts_but_does_not_train(
        self, tiny_llama, tokenizer, tmp_path, rows
    ):
        trainer = make(tiny_llama, tokenizer, tmp_path)
        dataset = Dataset.from_list(rows)
        assert trainer.train_dataset is None
        metrics = trainer.evaluate(dataset)
        assert {f"eval_{name}" for name in METRICS} <= set(metrics)
        output = trainer.predict(dataset.remove_columns("label"))
        assert output.predictions.shape == (8,)
        assert output.label_ids is None
        with pytest.raises(ValueError, match=r"nothing to train on\. Pass `train_dataset`"):
            trainer.train()

    def test_default_arguments(self, tiny_llama, tokenizer, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        tiny_llama.config._name_or_path = "someone/tiny-llama"
        trainer = RegressionAwareTrainer(tiny_llama, grid=range(5), processing_class=tokenizer)
        assert isinstance(trainer.args, RegressionAwareConfig)
        assert trainer.args.output_dir == "tiny-llama-RAFT"

    def test_the_output_is_a_prediction_output(self, tiny_llama, tokenizer, tmp_path, rows):
        output = make(tiny_llama, tokenizer, tmp_path).predict(Dataset.from_list(rows), metric_key_prefix="dev")
        predictions, labels, metrics = output
        assert isinstance(output, PredictionOutput)
        assert predictions.dtype == np.float32
        assert labels.tolist() == [row["label"] for row in rows]
        assert "dev_rmse" in metrics

    def test_metrics_are_those_of_the_numbers(self, tiny_llama, tokenizer, tmp_path, rows):
        from scipy import stats

        output = make(tiny_llama, tokenizer, tmp_path).predict(Dataset.from_list(rows))
        errors = output.predictions - np.array([row["label"] for row in rows])
        expected = {
            "rmse": math.sqrt((errors**2).mean()),
            "mae": abs(errors).mean(),
            "loss": (errors**2).mean(),
            "pearson": stats.pearsonr(output.predictions, output.label_ids).statistic,
            "spearman": stats.spearmanr(output.predictions, output.label_ids).statistic,
            "grid_mass": output.distribution.mass.mean().item(),
        }
        for name, value in expected.items():
            assert output.metrics[f"test_{name}"] == pytest.approx(value, rel=1e-5)

    def test_rows_come_back_in_order_and_whole(self, tiny_llama, tokenizer, tmp_path, rows):
        options = {"train_sampling_strategy": "group_by_length", "dataloader_drop_last": True}
        grouped = make(tiny_llama, tokenizer, tmp_path, rows, options=options)
        plain = make(tiny_llama, tokenizer, tmp_path)
        dataset = Dataset.from_list(rows)
        np.testing.assert_allclose(grouped.predict(dataset).predictions, plain.predict(dataset).predictions, atol=1e-6)
        assert grouped.args.dataloader_drop_last

    def test_chat_text_and_pretokenized_rows_agree(self, tiny_llama, tokenizer, tmp_path):
        chat = [{"role": "user", "content": "Rate the item 3"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text).input_ids
        trainer = make(tiny_llama, tokenizer, tmp_path)
        predictions = [
            trainer.predict(Dataset.from_list([row])).predictions.item()
            for row in ({"prompt": chat}, {"prompt": text}, {"input_ids": ids})
        ]
        assert predictions[0] == pytest.approx(predictions[1], abs=1e-6)
        assert predictions[0] == pytest.approx(predictions[2], abs=1e-6)
        with torch.no_grad():
            p = tiny_llama(torch.tensor([ids])).logits[0, -1].softmax(-1)
        by_hand = sum(y * p[tokenizer.convert_tokens_to_ids(str(y))].item() for y in GRID)
        assert predictions[0] == pytest.approx(by_hand, abs=1e-5)

    def test_streams_and_dicts_of_datasets(self, tiny_llama, tokenizer, tmp_path, rows):
        dataset = Dataset.from_list(rows)
        trainer = make(
            tiny_llama, tokenizer, tmp_path, eval_dataset={"a": dataset, "b": dataset.to_iterable_dataset()}
        )
        metrics = trainer.evaluate()
        assert metrics["eval_a_rmse"] == pytest.approx(metrics["eval_b_rmse"])
        assert metrics["eval_a_loss"] == pytest.approx(metrics["eval_b_loss"])

    def test_the_users_metrics_get_numbers(self, tiny_llama, tokenizer, tmp_path, rows):
        def compute_metrics(evaluated: EvalPrediction):
            assert evaluated.predictions.shape == evaluated.label_ids.shape == (8,)
            assert evaluated.losses.shape == (8,)
            return {"bias": (evaluated.predictions - evaluated.label_ids).mean()}

        trainer = make(
            tiny_llama, tokenizer, tmp_path, compute_metrics=compute_metrics, options={"include_for_metrics": ["loss"]}
        )
        assert {"eval_bias", "eval_rmse"} <= set(trainer.evaluate(Dataset.from_list(rows)))

    def test_renormalised(self, tiny_llama, tokenizer, tmp_path, rows):
        plain = make(tiny_llama, tokenizer, tmp_path).predict(Dataset.from_list(rows))
        output = make(tiny_llama, tokenizer, tmp_path, options={"renormalize": True}).predict(Dataset.from_list(rows))
        np.testing.assert_allclose(output.predictions, plain.predictions / plain.distribution.mass.numpy(), rtol=1e-5)
        assert output.metrics["test_grid_mass"] == pytest.approx(plain.metrics["test_grid_mass"])


class TestTraining:
    @pytest.mark.parametrize("renormalize", [False, True])
    def test_the_gradient_is_that_of_the_full_logits(self, tiny_llama, tokenizer, tmp_path, rows, renormalize):
        # How float32 is rounded differs from one version of torch to the next.
        model = tiny_llama.double()
        trainer = make(model, tokenizer, tmp_path, rows, options={"renormalize": renormalize})
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(rows))])
        trainer.compute_loss(model, dict(batch)).backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()

        # The same by the definition: each row alone, all its logits, softmax over the vocabulary, equation 10.
        ids_of_grid = tokenizer.convert_tokens_to_ids([f"Ġ{y}" for y in GRID])
        loss = 0.0
        for row in rows:
            logits = model(torch.tensor([tokenizer(row["prompt"]).input_ids])).logits
            p = logits[0, -1].softmax(-1)[ids_of_grid]
            if renormalize:
                p = p / p.sum()
            loss = loss + (row["label"] - sum(y * q for y, q in zip(GRID, p, strict=True))) ** 2 / len(rows)
        loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)

    def test_accumulation_does_not_change_the_gradient(self, tiny_llama, tokenizer, tmp_path, rows):
        """8 rows in one optimizer step, as 1 x 8, 8 x 1 and 3 + 3 + 2."""
        gradients = {}
        for batch_size, steps in ((8, 1), (1, 8), (3, 3)):
            model = tiny_llama.double()  # so that the order of summation does not hide behind rounding
            model.zero_grad()
            seen = {}

            class Keep(TrainerCallback):
                def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
                    seen.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})  # noqa: B023

            trainer = make(
                model,
                tokenizer,
                tmp_path,
                rows,
                callbacks=[Keep()],
                options={
                    "per_device_train_batch_size": batch_size,
                    "gradient_accumulation_steps": steps,
                    "max_steps": 1,
                    "learning_rate": 0.0,
                    "max_grad_norm": 0.0,
                    "weight_decay": 0.0,
                },
            )
            trainer.train()
            gradients[batch_size, steps] = seen
        reference = gradients[8, 1]
        assert len(reference) > 5
        whole = torch.cat([gradient.flatten() for gradient in reference.values()])
        for other in ((1, 8), (3, 3)):
            accumulated = torch.cat([gradients[other][name].flatten() for name in reference])
            assert (accumulated - whole).norm() / whole.norm() < 1e-6, other

    def test_the_logged_loss_is_the_mean_over_the_examples(self, tiny_llama, tokenizer, tmp_path, rows):
        trainer = make(
            tiny_llama,
            tokenizer,
            tmp_path,
            rows,
            options={
                "per_device_train_batch_size": 3,
                "gradient_accumulation_steps": 3,
                "max_steps": 1,
                "logging_steps": 1,
                "learning_rate": 0.0,
            },
        )
        expected = trainer.evaluate(Dataset.from_list(rows))["eval_loss"]
        trainer.train()
        logged = next(entry for entry in trainer.state.log_history if "grid_mass" in entry and "loss" in entry)
        assert logged["loss"] == pytest.approx(expected, rel=1e-4)
        assert 0 < logged["grid_mass"] < 1
        assert logged["num_tokens"] == sum(len(tokenizer(row["prompt"]).input_ids) for row in rows)

    def test_no_tensor_of_batch_length_vocabulary(self, tiny_llama, tokenizer, tmp_path, rows):
        class Largest(TorchDispatchMode):
            shapes: set = set()  # noqa: RUF012

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                out = function(*args, **(kwargs or {}))
                for tensor in torch.utils._pytree.tree_leaves(out):
                    if isinstance(tensor, torch.Tensor):
                        self.shapes.add(tuple(tensor.shape))
                return out

        trainer = make(tiny_llama, tokenizer, tmp_path, rows, options={"per_device_train_batch_size": 8})
        batch = trainer.data_collator(list(trainer.train_dataset))
        vocabulary, length = len(tokenizer), batch["input_ids"].shape[1]
        with Largest() as largest:
            trainer.compute_loss(trainer.model, dict(batch)).backward()
            trainer.prediction_step(trainer.model, dict(batch), False)
        assert (8, 1, vocabulary) in largest.shapes  # the final position's logits were seen
        with_vocabulary = [shape for shape in largest.shapes if vocabulary in shape]
        assert not [shape for shape in with_vocabulary if length in shape]
        assert max(math.prod(shape) for shape in with_vocabulary) <= vocabulary * 32  # the output matrix

    def test_lora_moves_and_the_base_does_not(self, tiny_llama, tokenizer, tmp_path, rows):
        trainer = make(
            tiny_llama, tokenizer, tmp_path, rows, peft_config=lora(), options={"max_steps": 3, "learning_rate": 1e-2}
        )
        before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
        trainer.train()
        for name, parameter in trainer.model.named_parameters():
            assert torch.equal(parameter, before[name]) is not parameter.requires_grad, name
            assert parameter.requires_grad is ("lora_" in name)

    def test_overfits_eight_rows(self, tiny_llama, tokenizer, tmp_path, rows):
        torch.nn.init.zeros_(tiny_llama.lm_head.weight)  # a grid that starts uniform, none of it out of reach
        trainer = make(
            tiny_llama,
            tokenizer,
            tmp_path,
            rows,
            options={"num_train_epochs": 150, "per_device_train_batch_size": 8, "learning_rate": 1e-2},
        )
        trainer.train()
        assert trainer.evaluate(Dataset.from_list(rows))["eval_rmse"] < 0.1

    def test_the_best_model_is_loaded_at_the_end(self, tiny_llama, tokenizer, tmp_path, rows):
        """Trained towards 0 and evaluated against 4, so that the first evaluation is the best."""
        train, evaluated = ([{**row, "label": label} for row in rows] for label in (0.0, 4.0))
        trainer = make(
            tiny_llama,
            tokenizer,
            tmp_path,
            train,
            peft_config=lora(),
            eval_dataset=Dataset.from_list(evaluated),
            options={
                "max_steps": 4,
                "eval_strategy": "steps",
                "eval_steps": 1,
                "save_strategy": "steps",
                "save_steps": 1,
                "load_best_model_at_end": True,
                "metric_for_best_model": "rmse",
                "learning_rate": 0.1,
                "lr_scheduler_type": "constant",
                "warmup_steps": 0,
            },
        )
        trainer.train()
        seen = [entry["eval_rmse"] for entry in trainer.state.log_history if "eval_rmse" in entry]
        assert seen[0] == min(seen) < seen[-1]
        assert trainer.state.best_metric == seen[0]
        assert trainer.evaluate()["eval_rmse"] == pytest.approx(seen[0], rel=1e-5)

    def test_a_stream_trains_for_max_steps(self, tiny_llama, tokenizer, tmp_path, rows):
        stream = Dataset.from_list(rows).to_iterable_dataset()
        trainer = RegressionAwareTrainer(
            tiny_llama, config(tmp_path, max_steps=3), grid=GRID, processing_class=tokenizer, train_dataset=stream
        )
        trainer.train()
        assert trainer.state.global_step == 3

    @pytest.mark.parametrize("args", ["sft", "bf16", "checkpointing", "padded"])
    def test_trains_under_other_settings(self, tiny_llama, tokenizer, tmp_path, rows, args):
        options = {
            "sft": SFTConfig(str(tmp_path), max_steps=2, report_to="none", use_cpu=True, save_strategy="no"),
            "bf16": config(tmp_path, max_steps=2, bf16=True),
            "checkpointing": config(tmp_path, max_steps=2, gradient_checkpointing=True),
            "padded": config(tmp_path, max_steps=2, pad_to_multiple_of=8),
        }[args]
        trainer = RegressionAwareTrainer(
            tiny_llama,
            options,
            grid=GRID,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            peft_config=lora(),
        )
        assert math.isfinite(trainer.train().training_loss)

    def test_a_completion_trains_like_a_label(self, tiny_llama, tokenizer, tmp_path, rows):
        completions = [{"prompt": row["prompt"], "completion": f"{row['label']:.1f}"} for row in rows]
        labelled, completed = (make(tiny_llama, tokenizer, tmp_path, data) for data in (rows, completions))
        assert list(labelled.train_dataset["label"]) == list(completed.train_dataset["label"])


class TestSaving:
    def test_checkpoints_and_folders_hold_everything(self, tiny_llama, tokenizer, tmp_path, rows):
        tiny_llama.save_pretrained(tmp_path / "base")
        trainer = make(
            str(tmp_path / "base"),
            tokenizer,
            tmp_path / "run",
            rows,
            peft_config=LoraConfig(),
            options={"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.1},
        )
        trainer.train()
        trainer.save_model(str(tmp_path / "final"))
        expected = trainer.predict(Dataset.from_list(rows)).predictions
        prompts = [row["prompt"] for row in rows]
        for folder in (tmp_path / "final", tmp_path / "run" / "checkpoint-2"):
            names = {path.name for path in folder.iterdir()}
            assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "raft_config.json"} <= names
            predictor = RegressionPredictor.from_pretrained(folder)
            np.testing.assert_allclose(predictor.predict(prompts, batch_size=3), expected, atol=1e-5)
            AutoPeftModelForCausalLM.from_pretrained(folder)
        written = json.loads((tmp_path / "final" / "raft_config.json").read_text())
        assert written["values"] == [0, 1, 2, 3, 4]
        assert written["token_texts"] == [" 0", " 1", " 2", " 3", " 4"]
        assert written["dtype"] == "float32"

    def test_full_fine_tuning_comes_back(self, tiny_llama, tokenizer, tmp_path, rows):
        trainer = make(tiny_llama, tokenizer, tmp_path, rows, options={"max_steps": 2, "renormalize": True})
        trainer.train()
        trainer.save_model()
        predictor = RegressionPredictor.from_pretrained(tmp_path)
        assert predictor.settings.renormalize
        expected = trainer.predict(Dataset.from_list(rows)).predictions
        np.testing.assert_allclose(predictor.predict([row["prompt"] for row in rows]), expected, atol=1e-5)

    def test_training_resumes(self, tiny_llama, tokenizer, tmp_path, rows):
        tiny_llama.save_pretrained(tmp_path / "base")
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.1}
        arguments = (str(tmp_path / "base"), tokenizer, tmp_path / "run", rows)
        whole = make(*arguments, peft_config=lora(), options=options)
        whole.train()
        resumed = make(*arguments, peft_config=lora(), options=options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
        dataset = Dataset.from_list(rows)
        np.testing.assert_allclose(resumed.predict(dataset).predictions, whole.predict(dataset).predictions, atol=1e-6)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"compute_loss_func": len}, "`compute_loss_func` cannot be used"),
            ({"preprocess_logits_for_metrics": len}, "`preprocess_logits_for_metrics` cannot be used"),
            ({"formatting_func": len}, "`formatting_func` cannot be used"),
            ({"peft_config": LoraConfig(task_type="SEQ_CLS")}, "task_type is .*SEQ_CLS.*CAUSAL_LM"),
            ({"grid": [1, 1]}, "more than once"),
            ({"train_dataset": Dataset.from_dict({"prompt": [], "label": []})}, "train dataset is empty"),
            ({"eval_dataset": {"dev": Dataset.from_dict({"prompt": []})}}, "dev dataset is empty"),
        ],
    )
    def test_says_what_and_why(self, tiny_llama, tokenizer, tmp_path, arguments, message):
        with pytest.raises(ValueError, match=message):
            RegressionAwareTrainer(
                tiny_llama, config(tmp_path), processing_class=tokenizer, **{"grid": GRID, **arguments}
            )

    def test_a_sequence_classifier(self, tokenizer, tmp_path):
        from transformers import LlamaConfig, LlamaForSequenceClassification

        model = LlamaForSequenceClassification(
            LlamaConfig(
                vocab_size=420,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_labels=1,
            )
        )
        with pytest.raises(ValueError, match=r"no output over the vocabulary.*AutoModelForCausalLM"):
            make(model, tokenizer, tmp_path)

    def test_context_parallelism(self):
        from types import SimpleNamespace

        from raft_peft.training.config import refuse_sequence_sharding

        refuse_sequence_sharding(SimpleNamespace(cp_enabled=False, sp_enabled=False))
        with pytest.raises(ValueError, match=r"Context and sequence parallelism.*cp_size"):
            refuse_sequence_sharding(SimpleNamespace(cp_enabled=True, sp_enabled=False))

    def test_labels_out_of_reach_and_cut_rows_are_said(self, tiny_llama, tokenizer, tmp_path, caplog):
        rows = [{"prompt": "the item " * 40, "label": 9.0}]
        with caplog.at_level(logging.WARNING):
            make(tiny_llama, tokenizer, tmp_path, rows, options={"max_length": 16})
        assert "1 of the 1 prompts" in caplog.text
        assert "1 of the 1 labels" in caplog.text


def test_letters_as_a_grid(tiny_llama, tokenizer, tmp_path, rows):
    """The paper's equation 15: the expectation of the numbers that the letters stand for."""
    letters = {0: "a", 1: "b", 5: "c"}
    output = make(tiny_llama, tokenizer, tmp_path, grid=letters).predict(Dataset.from_list(rows[:1]))
    resolved = resolve(NumberGrid(letters), tokenizer, rows[0]["prompt"])
    with torch.no_grad():
        p = tiny_llama(torch.tensor([resolved.prompt_ids])).logits[0, -1].softmax(-1)
    by_hand = sum(y * p[ids[0]].item() for y, ids in zip(letters, resolved.token_ids, strict=True))
    assert output.predictions.item() == pytest.approx(by_hand, abs=1e-5)


def test_smollm2_zero_shot_by_hand(smollm2, tmp_path):
    """Real weights, float32: text, chat and pre-tokenized rows, both padding sides, pad = eos, batches of 1 and 7."""
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    texts = [
        "The number of legs of a dog is",
        "Stars:",
        "A review: the soup was cold, the waiter was rude and the bill was wrong. From 0 to 9, I give it\n",
        "1 2 3 4",
    ]
    chats = [
        [{"role": "user", "content": "How many legs has an insect, halved? Answer with a digit."}],
        [{"role": "system", "content": "You grade essays."}, {"role": "user", "content": "Grade from 0 to 9: cats."}],
    ]
    written = [text if text.endswith("\n") else text + " " for text in texts]
    written += [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    rows = [{"prompt": prompt} for prompt in [*texts, *chats]]
    digits = tokenizer.convert_tokens_to_ids([str(digit) for digit in range(10)])
    expected = []
    for text in written:
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(text).input_ids])).logits[0, -1].double()
        expected.append((logits.softmax(-1)[digits] * torch.arange(10)).sum().item())
    assert np.std(expected) > 0.5

    # `test_equals_the_full_logits` has all combinations.
    pad, eos = tokenizer.pad_token, tokenizer.eos_token
    for padding_side, pad_token, batch_size in (("left", pad, 7), ("right", eos, 7), ("left", eos, 1)):
        tokenizer.padding_side, tokenizer.pad_token = padding_side, pad_token
        trainer = RegressionAwareTrainer(
            model,
            config(tmp_path, per_device_eval_batch_size=batch_size),
            grid=range(10),
            processing_class=tokenizer,
        )
        for part in (rows[: len(texts)], rows[len(texts) :]):
            start = 0 if part[0] is rows[0] else len(texts)
            predicted = trainer.predict(Dataset.from_list(part)).predictions
            np.testing.assert_allclose(predicted, expected[start : start + len(part)], rtol=1e-5, atol=1e-5)
        ids = Dataset.from_list([{"input_ids": tokenizer(text).input_ids} for text in written])
        np.testing.assert_allclose(trainer.predict(ids).predictions, expected, rtol=1e-5, atol=1e-5)
