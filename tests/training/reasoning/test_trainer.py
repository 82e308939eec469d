"""`RegressionAwareTrainer` on rows with reasonings before their scores."""

import json

import numpy as np
import pytest
import torch
from conftest import make_byte_level, make_tiny_llama
from datasets import Dataset, load_from_disk
from support.reasonings import SCORE_PREFIX, read_by_hand, reasoned_rows
from support.training import GRID, config, lora
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.loss.loss_utils import ForCausalLMLoss

from raft_peft import RegressionAwareTrainer, RegressionPredictor
from raft_peft.data.reasoning.collator import ReasoningCollator
from raft_peft.training.reasoning.trainer import ReasoningTrainer
from raft_peft.training.speed.step_memory import bytes_of_step, kept_bytes

DECIMALS = [0.5, 1.5, 2.5, 3.5]


def make(model, tokenizer, folder, rows=None, options=None, grid=GRID, **arguments):
    rows = reasoned_rows() if rows is None else rows
    return RegressionAwareTrainer(
        model,
        config(folder, **(options or {})),
        grid=grid,
        processing_class=tokenizer,
        train_dataset=rows if hasattr(rows, "features") else Dataset.from_list(rows),
        **arguments,
    )


def squared_error(log_probs, grid, row, logits):
    return ((log_probs.exp() * torch.tensor(grid)).sum() - row["label"]) ** 2


def by_hand(model, tokenizer, rows, *, weight=1.0, grid=GRID, loss=squared_error, texts=None):
    """The loss at each score, and the cross-entropy of the reasonings, from the full logits."""
    losses, tokens, predictions = [], [], []
    for row in rows:
        of_row = []
        chat = not isinstance(row["prompt"], str)
        prompt = row["prompt"]
        if chat:
            prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        for reasoning in row["reasoning"] or [None]:
            written = grid if texts is None else texts(row)
            separator = "" if chat else " "
            log_probs, of_tokens, logits = read_by_hand(
                model, tokenizer, prompt, reasoning, written, separator=separator
            )
            losses.append(loss(log_probs, grid, row, logits))
            if texts is None:
                of_row.append((log_probs.exp() * torch.tensor(grid)).sum())
            if reasoning is not None:
                tokens.append(of_tokens)
        predictions.append(torch.stack(of_row).mean() if of_row else torch.zeros(()))
    nll = -torch.cat(tokens).mean()
    return torch.stack(losses).mean() + weight * nll, nll, torch.stack(predictions)


def one_step(trainer):
    """The loss of an optimizer step over all rows, whose gradients are in the model."""
    batches = list(trainer.get_train_dataloader())
    trainer.current_gradient_accumulation_steps = len(batches)
    count = trainer._get_num_items_in_batch(batches, trainer.args.device)
    return sum(trainer.training_step(trainer.model, one, count) for one in batches)


def gradients(model):
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize(("batch", "steps"), [(8, 1), (1, 8), (3, 3)])
def test_loss_and_gradients_are_those_of_full_logits(tokenizer, tmp_path, padding_free, batch, steps):
    rows, weight = reasoned_rows(), 0.7
    expected_model = make_tiny_llama(tokenizer)
    expected, _, _ = by_hand(expected_model, tokenizer, rows, weight=weight)
    expected.backward()
    options = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": steps,
        "padding_free": padding_free,
        "reasoning_weight": weight,
        "max_steps": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 1e9,
        "logging_steps": 1,
    }
    model = make_tiny_llama(tokenizer)
    trainer = make(model, tokenizer, tmp_path, rows, options)
    assert isinstance(trainer, ReasoningTrainer)
    kept = {}

    def keep(optimizer, *_):
        kept["gradients"] = gradients(model).clone()

    trainer.create_optimizer().register_step_pre_hook(keep)
    trainer.train()
    found = trainer.state.log_history[0]
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(kept["gradients"], gradients(expected_model), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("padding_free", [False, True])
def test_an_evaluation_reads_the_mean_over_the_reasonings(tokenizer, tmp_path, padding_free):
    rows = reasoned_rows()
    model = make_tiny_llama(tokenizer)
    with torch.no_grad():
        _, nll, expected = by_hand(model, tokenizer, rows)
    trainer = make(model, tokenizer, tmp_path, rows, {"padding_free": padding_free})
    metrics = trainer.evaluate(Dataset.from_list(rows))
    labels = torch.tensor([row["label"] for row in rows])
    assert metrics["eval_rmse"] == pytest.approx((expected - labels).square().mean().sqrt().item(), rel=1e-5)
    assert metrics["eval_reasoning_loss"] == pytest.approx(nll.item(), rel=1e-5)
    predicted = trainer.predict(Dataset.from_list(rows))
    np.testing.assert_allclose(predicted.predictions, expected.numpy(), atol=1e-5)
    assert predicted.distribution.log_probs.shape == (8, len(GRID))


def as_chats(rows):
    return [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]


def expected_squared_error(log_probs, grid, row, logits):
    return (log_probs.exp() * (torch.tensor(grid) - row["label"]) ** 2).sum()


def special_token(log_probs, grid, row, logits):
    """b + the logit of the token, where b starts in the middle of the grid."""
    return (2.0 + logits[7] - row["label"]) ** 2


CASES = {
    "decimals": {"grid": DECIMALS},
    "decimals without padding": {"grid": DECIMALS, "options": {"padding_free": True}},
    "gemma2": {"model": "gemma2"},
    "gemma2 without padding": {"model": "gemma2", "options": {"padding_free": True}},
    "chats": {"rows": as_chats(reasoned_rows()), "options": {"padding_free": True}},
    "mbr": {"loss": expected_squared_error, "options": {"method": "mbr"}},
    "special token": {"loss": special_token, "options": {"method": "special_token", "special_token": "TOKEN"}},
    "ce": {
        "loss": lambda log_probs, *_: -log_probs.sum(),
        "texts": lambda row: [f"{row['label']:g}<eos>"],
        "options": {"method": "ce"},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_of_every_kind(tokenizer, tiny_gemma2, tmp_path, case):
    """Numbers of several tokens, soft-capped logits and sliding windows, chats, other losses and heads."""
    case = CASES[case]
    model = tiny_gemma2 if case.get("model") else make_tiny_llama(tokenizer)
    rows, grid = case.get("rows", reasoned_rows()), case.get("grid", GRID)
    more = {name: case[name] for name in ("loss", "texts") if name in case}
    expected, _, _ = by_hand(model, tokenizer, rows, grid=grid, weight=0.7, **more)
    expected.backward()
    of_full_logits = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad(set_to_none=True)
    options = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3, "reasoning_weight": 0.7}
    options |= {
        name: tokenizer.convert_ids_to_tokens(7) if value == "TOKEN" else value
        for name, value in case.get("options", {}).items()
    }
    trainer = make(model, tokenizer, tmp_path, rows, options, grid=grid)
    torch.testing.assert_close(one_step(trainer), expected.detach(), atol=1e-5, rtol=1e-5)
    for name, weight in model.named_parameters():
        if name in of_full_logits:
            torch.testing.assert_close(weight.grad, of_full_logits[name], atol=1e-5, rtol=1e-4)


def test_the_formula_of_tract(tokenizer, tmp_path):
    """Its `ForCausalLMLoss` over the reasoning and the words behind it, and its `mse_loss` of the expected score.

    The number of tokens is here that of those which the loss is over, and the score's loss a mean over sequences.
    """
    rows = [
        {**row, "reasoning": one} for row in reasoned_rows() for one in row["reasoning"] or [] if row["label"] % 1 == 0
    ]
    model = make_tiny_llama(tokenizer)
    trainer = make(model, tokenizer, tmp_path, rows, {"per_device_train_batch_size": len(rows)})
    batch = next(iter(trainer.get_train_dataloader()))
    (texts, scores) = zip(
        *[(f"{row['prompt']} {row['reasoning']}\n[RESULT]", row["label"]) for row in rows], strict=True
    )
    padded = tokenizer([f"{text} {score:g}" for text, score in zip(texts, scores, strict=True)], padding=True)
    ids, mask = torch.tensor(padded["input_ids"]), torch.tensor(padded["attention_mask"])
    labels = ids.masked_fill(mask == 0, -100)
    score_pos = torch.tensor([len(tokenizer(text)["input_ids"]) for text in texts])
    for place, row in enumerate(rows):
        labels[place, : len(tokenizer(row["prompt"])["input_ids"])] = -100
    labels[torch.arange(len(rows)), score_pos] = -100
    logits = model(input_ids=ids, attention_mask=mask).logits
    lm_loss = ForCausalLMLoss(
        logits=logits, labels=labels, vocab_size=logits.size(-1), num_items_in_batch=(labels != -100).sum()
    )
    score_logits = logits[torch.arange(len(rows)), score_pos - 1]
    grid_ids = [tokenizer(f"x {number}")["input_ids"][-1] for number in GRID]
    weighted = (score_logits.softmax(-1)[:, grid_ids] * torch.tensor(GRID)).sum(-1)
    expected = lm_loss + torch.nn.functional.mse_loss(weighted, torch.tensor(scores))
    torch.testing.assert_close(trainer.compute_loss(model, batch), expected, rtol=1e-5, atol=1e-5)


def test_the_prompt_is_computed_once_for_all_of_its_reasonings(tokenizer, tmp_path):
    model, counted = make_tiny_llama(tokenizer), []
    prompt = "Rate the long and winding item 27, as well as you can, and say why:"
    rows = [{"prompt": f"{number} {prompt}", "reasoning": ["It", "So", "Hm"], "label": 1.0} for number in (3, 4)]
    found = {}
    for padding_free in (False, True):
        trainer = make(model, tokenizer, tmp_path, rows, {"padding_free": padding_free})
        hook = model.model.layers[0].mlp.register_forward_hook(lambda _, args, output: counted.append(args[0]))
        one_step(trainer)
        hook.remove()
        # The one batch comes last: before it, the layout is tried on few tokens.
        found[padding_free] = counted[-1].shape[0] * counted[-1].shape[1]
    length = len(tokenizer(rows[0]["prompt"])["input_ids"])
    lengths = [len(tokenizer(f" {one}\n[RESULT]")["input_ids"]) for one in rows[0]["reasoning"]]
    assert found[False] == 2 * 3 * (length + max(lengths))
    # The space before the reasonings is one token, which they share.
    assert found[True] == 2 * (length + sum(lengths) - 2)


def test_a_resumed_run_takes_the_reasonings_that_were_left(tokenizer, tmp_path):
    """From the middle of the second of three epochs of four steps; of some rows another reasoning in each."""
    options = {
        "reasonings": "one",
        "num_train_epochs": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 6,
        "logging_steps": 1,
    }
    whole = make(make_tiny_llama(tokenizer), tokenizer, tmp_path, options=options)
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReasoningCollator, "_places", noting(ReasoningCollator._places, taken))
        whole.train()
    resumed = make(make_tiny_llama(tokenizer), tokenizer, tmp_path, options=options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert [one.get("loss") for one in resumed.state.log_history] == [
        one.get("loss") for one in whole.state.log_history
    ]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    # Each reasoning of the row with three was taken once, and no row twice in an epoch.
    assert len(taken) == 24
    assert sorted(place for count, place in taken if count == 3) == [0, 1, 2]


def noting(places, taken):
    def noted(self, row):
        found = places(self, row)
        taken.append((len(row["input_ids"]), *found))
        return found

    return noted


def test_rows_of_a_stream_and_of_ids_are_those_of_a_table(tokenizer, tmp_path):
    rows = reasoned_rows()
    of_ids = [{**row, "input_ids": tokenizer(row["prompt"])["input_ids"]} for row in rows]
    of_ids = [{name: value for name, value in row.items() if name != "prompt"} for row in of_ids]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
    losses = []
    for source in (rows, of_ids, stream, load_from_disk(str(tmp_path / "rows"))):
        options = {"max_steps": 1, "per_device_train_batch_size": 8, "logging_steps": 1}
        trainer = make(make_tiny_llama(tokenizer), tokenizer, tmp_path, source, options)
        losses.append(trainer.train().training_loss)
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)
    # Encoded once: another trainer finds the rows from disk in the cache.
    again = make(make_tiny_llama(tokenizer), tokenizer, tmp_path, load_from_disk(str(tmp_path / "rows")))
    assert again.train_dataset.cache_files == trainer.train_dataset.cache_files != []
    shorter = LlamaConfig(**{**make_tiny_llama(tokenizer).config.to_dict(), "max_position_embeddings": 20})
    for source in (stream, rows):
        with pytest.raises(
            ValueError, match=r"row 0: the prompt with its number has \d+ tokens, and the model has 20"
        ):
            make(LlamaForCausalLM(shorter), tokenizer, tmp_path, source, {"max_steps": 1}).train()


def test_each_pass_over_a_stream_takes_other_reasonings(tokenizer, tmp_path):
    rows, taken = [row for row in reasoned_rows() if len(row["reasoning"] or []) > 1], []
    stream = Dataset.from_list(rows).to_iterable_dataset()
    options = {"reasonings": "one", "max_steps": 6, "per_device_train_batch_size": 3}
    trainer = make(make_tiny_llama(tokenizer), tokenizer, tmp_path, stream, options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReasoningCollator, "_places", noting(ReasoningCollator._places, taken))
        trainer.train()
    of_three = [place for count, place in taken if count == 3][:6]
    assert of_three[:3] == of_three[3:] and sorted(of_three[:3]) == [0, 1, 2]


def test_rows_are_grouped_by_their_longest_prompts(tokenizer, tmp_path):
    trainer = make(
        make_tiny_llama(tokenizer), tokenizer, tmp_path, options={"train_sampling_strategy": "group_by_length"}
    )
    sampler = trainer.get_train_dataloader().batch_sampler.sampler
    assert sampler.lengths == [max(map(len, ids)) for ids in trainer.train_dataset["input_ids"]]


@pytest.mark.parametrize("options", [{"padding_free": None}, {"padding_free": False}, {"reasonings": "one"}])
def test_the_memory_of_a_step_holds_the_logits_of_the_reasonings(tokenizer, tmp_path, options):
    reasonings = ["It is " * 25, "So " * 50, "Hm, " * 30]
    rows = [{"prompt": f"{number} {'tea ' * 30}", "reasoning": reasonings, "label": 1.0} for number in range(4)]
    options = {"per_device_train_batch_size": 4, **options}
    model = make_tiny_llama(tokenizer)
    trainer = make(model, tokenizer, tmp_path, rows, options)
    assert trainer.args.padding_free is (options.get("padding_free", False) is None)
    batch = next(iter(trainer.get_train_dataloader()))
    batch["attention_mask"][:, 0] = 0
    weights = sum(3 * one.nbytes for one in model.parameters())
    found = kept_bytes(model.train(), lambda: trainer.compute_loss(model, batch))
    assert 0.95 * found < bytes_of_step(trainer) - weights < 1.3 * found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An adapter, trained on the CPU as by default, with an evaluation; its folder, and the table that was logged."""
    folder, tokenizer, tables = tmp_path_factory.mktemp("reasons"), make_byte_level(), []
    make_tiny_llama(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    options = {"max_steps": 4, "learning_rate": 1e-2, "padding_free": None, "report_to": "tensorboard"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(folder / "logs"))
        patch.setattr("raft_peft.training.trainer.log_table", lambda *given: tables.append(given))
        trainer = make(str(folder / "base"), tokenizer, folder / "judge", options=options, peft_config=lora())
        trainer.train()
        trainer.evaluate(Dataset.from_list(reasoned_rows()))
    trainer.save_model()
    return trainer, folder / "judge", tables


def test_by_default_prompts_are_shared_on_a_cpu(trained):
    trainer, _, _ = trained
    assert trainer.args.padding_free and trainer.readout.padding_free
    entry = next(one for one in trainer.state.log_history if "eval_rmse" in one)
    assert entry["eval_reasoning_loss"] > 0 and entry["eval_loss"] > 0


def test_a_table_shows_reasonings_of_the_rows_and_of_the_model(trained):
    trainer, _, [(name, rows, *_)] = trained
    assert name == "eval_predictions" and len(rows) == 4
    assert list(rows[0])[:6] == [
        "prompt",
        "reasoning",
        "written_reasoning",
        "written_prediction",
        "label",
        "prediction",
    ]
    assert rows[0]["prompt"] == "Rate tea, and say why:" and rows[0]["reasoning"] == " It is hot.\n[RESULT]"
    assert rows[2]["written_reasoning"] == "" and np.isnan(rows[2]["written_prediction"])
    written = rows[0]["written_reasoning"]
    log_probs, _, _ = read_by_hand(trainer.model, trainer.processing_class, rows[0]["prompt"], written, GRID)
    assert rows[0]["written_prediction"] == pytest.approx(
        (log_probs.exp() * torch.tensor(GRID)).sum().item(), abs=1e-4
    )


def test_the_folder_and_its_card_tell_of_the_reasonings(trained, tmp_path):
    trainer, folder, _ = trained
    assert json.loads((folder / "raft_config.json").read_text())["score_prefix"] == SCORE_PREFIX
    card = (folder / "README.md").read_text()
    assert "It was trained to write a reasoning before its number" in card
    assert '| Before the number | a reasoning, and behind it `"\\n[RESULT] "` |' in card
    assert "predictor.predict(prompts, num_reasonings=5)" in card
    assert "the reasoning comes next, then the number:" in card
    rows = reasoned_rows()
    predicted = RegressionPredictor.from_pretrained(folder).predict(rows)
    np.testing.assert_allclose(predicted, trainer.predict(Dataset.from_list(rows)).predictions, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "bidirectional"}, "`attention='bidirectional'` lets each token see .* drop the column"),
        ({"reasoning_weight": -1.0}, "`reasoning_weight=-1.0` must be a number of 0 or more"),
        ({"reasoning_weight": float("nan")}, "`reasoning_weight=nan` must be a number of 0 or more"),
        ({"reasoning_weight": float("inf")}, "`reasoning_weight=inf` must be a number"),
        ({"reasonings": "first"}, "`reasonings='first'` does not exist. Use 'all' or 'one'"),
        ({"score_prefix": " \n"}, "`score_prefix=' \\\\n'` has no words"),
        (
            {"score_prefix": "So: ", "prompt_template": "{prompt} {reasoning}"},
            "`prompt_template` writes this column into the prompt. Leave out",
        ),
    ],
)
def test_settings_that_cannot_be_used(tokenizer, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(make_tiny_llama(tokenizer), tokenizer, tmp_path, options=options)


def test_a_template_that_names_the_reasonings_makes_them_part_of_the_prompt(tokenizer, tmp_path):
    rows = [{"text": "tea", "reasoning": "It is hot. The score is 3.", "label": 3.0}]
    options = {"prompt_template": "Rate {text}. {reasoning} I say:"}
    trainer = make(make_tiny_llama(tokenizer), tokenizer, tmp_path, rows, options)
    assert not isinstance(trainer, ReasoningTrainer)
    (ids,) = trainer.train_dataset["input_ids"]
    assert tokenizer.decode(ids) == "Rate tea. It is hot. The score is 3. I say:"


def test_a_reasoning_that_is_cut_is_said(tokenizer, tmp_path, caplog):
    rows = [{"prompt": "Rate it:", "reasoning": ["It is fine", "It is fine as it is " * 9], "label": 1.0}] * 2
    make(make_tiny_llama(tokenizer), tokenizer, tmp_path, rows, {"max_length": 60})
    (said,) = [one.message for one in caplog.records if "reasoning" in one.message]
    assert said.startswith(
        "2 of the 2 prompts of the train dataset have a reasoning that is longer than `max_length=60`"
    )
