"""Sequence classification with one output, against the same written out with transformers and PEFT."""

import copy

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import CHAT_TEMPLATE, make_byte_level, make_tiny_llama
from datasets import Dataset, DatasetDict
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from support.training import baseline_arguments
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    CohereConfig,
    CohereForCausalLM,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    set_seed,
)

from raft_peft.compare import CompareSettings, sequence_classification_trainer
from raft_peft.compare.run import Run
from raft_peft.compare.trainers import trainer_of
from raft_peft.data.prompts import PromptEncoder
from raft_peft.grid import NumberGrid
from raft_peft.training.quantization import qlora

ITEMS = ["tea", "a cup of very hot tea", "soup", "the long and winding item 27", "1", "a", "item 3", "it"]
PROMPTS = [f"Rate {item} from 0 to 4:" for item in ITEMS]
LABELS = [1.0, 2.0, 0.0, 4.0, 2.5, 3.0, 1.0, 0.1]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they give in a model this small, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_tokenizer():
    tokenizer = make_byte_level()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = make_tokenizer()
    return save(make_tiny_llama(tokenizer), tokenizer, tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def dataset():
    rows = Dataset.from_dict({"prompt": PROMPTS, "label": LABELS})
    return DatasetDict(train=rows, validation=rows, test=rows)


def lora(**options):
    return LoraConfig(r=4, target_modules="all-linear", **options)


def make(model, dataset, folder, *, options=None, **keywords):
    keywords = {"peft_config": lora(), **keywords}
    return sequence_classification_trainer(
        model, dataset, args=baseline_arguments(folder, **(options or {})), **keywords
    )


def trained_weights(trainer):
    return {
        name: weights.detach().clone() for name, weights in trainer.model.named_parameters() if weights.requires_grad
    }


@pytest.fixture(scope="module")
def by_hand(model, tmp_path_factory):
    """The recipe lora with transformers and PEFT alone: the trainer and its predictions."""
    set_seed(5)
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=1, problem_type="regression", dtype=torch.float32
    )
    classifier.config.pad_token_id = tokenizer.pad_token_id
    adapter = LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    rows = Dataset.from_list(
        [{"input_ids": tokenizer(x)["input_ids"], "labels": y} for x, y in zip(PROMPTS, LABELS, strict=True)]
    )
    folder = tmp_path_factory.mktemp("by_hand")
    args = baseline_arguments(
        folder,
        max_steps=3,
        per_device_train_batch_size=4,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        seed=5,
    )
    collator = DataCollatorWithPadding(tokenizer)
    trainer = Trainer(get_peft_model(classifier, adapter), args, train_dataset=rows, data_collator=collator)
    trainer.train()
    return trainer, trainer.predict(rows).predictions[:, 0]


def by_comparison(model, folder, **options):
    """The same by a comparison: the trainer, trained, and its rows."""
    rows = Dataset.from_dict({"prompt": PROMPTS, "label": LABELS})
    options = {"per_device_train_batch_size": 4, **options}
    method = "sequence_classification"
    settings = CompareSettings(model, str(folder), methods=method, task="stsb", max_steps=3, keep="last", **options)
    run = Run(vars(settings), [(0.0, "0"), (4.0, "4")], "", method, seed=5, learning_rate=1e-2)
    trainer, test = trainer_of(run, DatasetDict(train=rows, validation=rows, test=rows), folder, _Nothing())
    trainer.train()
    return trainer, test


@pytest.fixture(scope="module")
def compared(model, tmp_path_factory):
    return by_comparison(model, tmp_path_factory.mktemp("compared"))


class _Nothing:
    """A callback of nothing."""

    def __getattr__(self, name):
        return lambda args, state, control, **kwargs: control


def test_is_what_transformers_and_peft_give_by_hand(compared, by_hand):
    trainer, test = compared
    theirs, expected = by_hand
    assert expected.std() > 0.1
    output = trainer.predict(test)
    assert output.predictions.shape == (8,) and output.predictions.dtype == np.float32
    assert output.predictions == pytest.approx(expected, abs=1e-6)
    assert output.label_ids == pytest.approx(LABELS)
    names = [sorted(trained_weights(one)) for one in (trainer, theirs)]
    assert names[0] == names[1] and sum("score" in name for name in names[0]) == 1


def test_validation_has_the_metrics_of_the_other_methods(compared):
    trainer, test = compared
    metrics, predictions = trainer.evaluate(), trainer.predict(test).predictions
    assert metrics["eval_rmse"] == pytest.approx(np.sqrt(np.mean((predictions - LABELS) ** 2)), rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_rmse"] ** 2, rel=1e-5)
    assert {"eval_mae", "eval_pearson", "eval_spearman", "eval_kendall"} <= set(metrics)


def test_a_prediction_does_not_depend_on_padding(compared):
    trainer, test = compared
    classifier = trainer.model.eval()
    collator = trainer.data_collator
    rows = [{"input_ids": ids} for ids in test["input_ids"]]
    with torch.no_grad():
        alone = torch.cat([classifier(**collator([row])).logits for row in rows])
        batch = collator(rows)
        tokenizer = copy.deepcopy(trainer.processing_class)
        tokenizer.padding_side = "left"
        left = DataCollatorWithPadding(tokenizer)(rows)
        assert batch["attention_mask"][0, -1] == 0 and left["attention_mask"][0, 0] == 0
        torch.testing.assert_close(classifier(**batch).logits, alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(classifier(**left).logits, alone, atol=1e-5, rtol=1e-5)


def test_the_saved_model_gives_the_same_predictions(compared, tmp_path):
    trainer, test = compared
    expected = trainer.predict(test).predictions
    trainer.save_model(str(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    opened = AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    with torch.no_grad():
        found = opened.eval()(**tokenizer(PROMPTS, padding=True, return_tensors="pt")).logits[:, 0]
    assert found.numpy() == pytest.approx(expected, abs=1e-6)


def test_the_step_of_the_least_rmse_is_restored_exactly(model, dataset, tmp_path):
    dataset["validation"] = dataset["train"].map(lambda row: {"label": 4 - row["label"]})  # gets worse with training
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"save_only_model": True, "load_best_model_at_end": True, "metric_for_best_model": "rmse"}
    trainer, _ = make(model, dataset, tmp_path, options={**steps, **best, "max_steps": 3})
    trainer.train()
    rmse = {entry["step"]: entry["eval_rmse"] for entry in trainer.state.log_history if "eval_rmse" in entry}
    assert trainer.state.best_metric == min(rmse.values()) < rmse[3]
    assert trainer.evaluate()["eval_rmse"] == min(rmse.values())


def test_without_an_adapter_all_weights_are_trained_and_saved(model, dataset, tmp_path):
    trainer, test = make(model, dataset, tmp_path, peft_config=None, options={"max_steps": 1})
    before = trained_weights(trainer)
    trainer.train()
    assert not [name for name, weights in trained_weights(trainer).items() if torch.equal(weights, before[name])]
    assert len(before) == len(trainer.model.state_dict())
    expected = trainer.predict(test).predictions
    trainer.save_model(str(tmp_path / "whole"))
    again, test = make(str(tmp_path / "whole"), dataset, tmp_path)
    assert again.predict(test).predictions == pytest.approx(expected, abs=1e-5)


def test_the_output_is_in_float32_also_under_bf16(model, dataset, tmp_path):
    trainer, test = make(model, dataset, tmp_path, options={"bf16": True, "max_steps": 1})
    trainer.train()
    predictions = trainer.predict(test).predictions
    assert predictions.dtype == np.float32
    assert (predictions != torch.tensor(predictions).bfloat16().float().numpy()).all()
    assert {weights.dtype for weights in trained_weights(trainer).values()} == {torch.float32}


def test_batches_of_a_step_and_checkpointing_change_nothing(compared, model, tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    trainer, _ = by_comparison(model, tmp_path, **options)
    assert trainer.model.get_base_model().is_gradient_checkpointing
    assert not compared[0].model.get_base_model().is_gradient_checkpointing
    (norm,), (expected,) = (
        [log["grad_norm"] for log in one.state.log_history if "grad_norm" in log] for one in (trainer, compared[0])
    )
    assert norm == pytest.approx(expected, rel=1e-3)
    for name, weights in trained_weights(compared[0]).items():
        torch.testing.assert_close(trained_weights(trainer)[name], weights, atol=1e-4, rtol=1e-3, msg=name)


def test_four_bits_leave_the_output_dense(dataset, tmp_path):
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    trainer, test = make(
        save(llama, tokenizer, tmp_path / "model"),
        dataset,
        tmp_path,
        quantization_config=qlora()["quantization_config"],
        options={"max_steps": 1},
    )
    base = trainer.model.get_base_model()
    kinds = {type(layer.base_layer) for name, layer in base.named_modules() if name.endswith("_proj")}
    assert kinds == {Linear4bit}
    assert base.score.weight.dtype == torch.float32
    before = trained_weights(trainer)
    trainer.train()
    after = trained_weights(trainer)
    assert any("score" in name for name in after) and {weights.dtype for weights in after.values()} == {torch.float32}
    assert not [
        name for name in after if ("lora_B" in name or "score" in name) and torch.equal(before[name], after[name])
    ]
    assert trainer.predict(test).predictions.dtype == np.float32


def test_reads_chats_ratings_and_the_end_of_long_prompts_as_the_other_methods(model, dataset, tmp_path, caplog):
    chat = [{"role": "system", "content": "Grade."}, {"role": "user", "content": "tea " * 40}]
    rows = {"prompt": [chat, [{"role": "user", "content": "soup"}]], "label": [[3.0, 4.0, 5.0], [1.0]]}
    dataset["test"] = Dataset.from_dict(rows)
    _, test = make(model, dataset, tmp_path, max_length=40)
    assert test["label"] == [4.0, 1.0]
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(model), NumberGrid([0, 4]), max_length=40)
    assert test["input_ids"] == [row.input_ids for row in encoder.encode([{"prompt": one} for one in rows["prompt"]])]
    assert len(test[0]["input_ids"]) == 40
    assert "1 of the 2 prompts of the test dataset fill the 40 tokens" in caplog.text


def test_special_tokens_at_the_beginning_stay(tmp_path, dataset):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "<eos>{{ messages[0]['content'] }}"
    folder = save(make_tiny_llama(tokenizer), tokenizer, tmp_path / "model")
    dataset["test"] = Dataset.from_dict({"prompt": [[{"role": "user", "content": "tea " * 20}]], "label": [1.0]})
    _, test = make(folder, dataset, tmp_path, max_length=8)
    assert test[0]["input_ids"][0] == tokenizer.eos_token_id and len(test[0]["input_ids"]) == 8


def test_a_model_with_few_positions_and_no_padding_token(tmp_path, dataset):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_byte_level().backend_tokenizer, eos_token="<eos>")
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=2, eos_token_id=2, **sizes))
    folder = save(gpt2, tokenizer, tmp_path / "gpt2")
    trainer, test = make(folder, dataset, tmp_path, peft_config=None)
    assert max(map(len, test["input_ids"])) == 16
    assert trainer.model.config.pad_token_id == trainer.processing_class.pad_token_id == 2
    batched = trainer.predict(test).predictions
    with torch.no_grad():
        alone = [trainer.model(torch.tensor([ids])).logits.item() for ids in test["input_ids"]]
    assert batched == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_config": lora(task_type="CAUSAL_LM")}, "task_type is .*CAUSAL_LM.*Set task_type='SEQ_CLS'"),
        ({"peft_config": None, "quantization_config": qlora()["quantization_config"]}, "Set `peft_config`"),
        ({"max_length": 1}, "`max_length=1` leaves no room"),
        ({"label_column": "stars"}, "label in 'stars'"),
        ({"prompt": ["a", ""]}, "row 1: the prompt has no tokens"),
        ({"prompt": ["<pad><pad>", "a"]}, "row 0: the prompt has no token but the padding token"),
        ({"prompt": [["a"], ["b"]]}, "row 0: the prompt is .*must be a text, or a list of chat messages"),
        ({"label": [1.0, float("nan")]}, "row 1: the label is nan"),
        ({"label": ["good", "bad"]}, "row 0: the label 'good' is not a number"),
    ],
)
def test_refuses_what_cannot_be_trained_on(options, message, model, dataset, tmp_path):
    keywords = {name: value for name, value in options.items() if name not in ("prompt", "label")}
    rows = {name: value for name, value in options.items() if name in ("prompt", "label")}
    dataset["train"] = Dataset.from_dict({"prompt": ["a", "b"], "label": [1.0, 2.0], **rows})
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make(model, dataset, tmp_path, **keywords)


def test_refuses_models_without_a_decoders_output(model, dataset, tmp_path, compared):
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = save(BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)), tokenizer, tmp_path / "bert")
    cohere = save(CohereForCausalLM(CohereConfig(vocab_size=len(tokenizer), **sizes)), tokenizer, tmp_path / "cohere")
    compared[0].save_model(str(tmp_path / "adapter"))
    reasons = {
        bert: "no linear `score`.*methods encoder_cls and encoder_mean",
        cohere: "no sequence classification for cohere.*special_token or pooled",
        str(tmp_path / "adapter"): "holds an adapter",
    }
    for folder, reason in reasons.items():
        with pytest.raises(ValueError, match=reason):
            make(folder, dataset, tmp_path)


def test_refuses_tokens_that_the_model_lacks(dataset, tmp_path):
    tokenizer = make_tokenizer()
    tiny = make_tiny_llama(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    with pytest.raises(ValueError, match=r"beyond the model's .* embeddings"):
        make(save(tiny, tokenizer, tmp_path / "model"), dataset, tmp_path)
