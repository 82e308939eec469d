"""The encoder baselines, on a BERT of a few thousand weights with a tokenizer of whole words."""

import copy

import pytest
import torch
from datasets import Dataset, DatasetDict, Value
from support.training import baseline_arguments
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    TrainerCallback,
)

from raft_peft.compare.encoders import EncoderRegressor, encoder_trainer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(30))]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
PROMPTS = ["w1", "w2 w3", "w4 w5 w6 w7", "w8", "w9 w10 w11", "w12 w13", "w14", "w15 w16 w17 w18 w19"]
LABELS = [1, 2, 0, 4, 2.5, 3, 1, 0.1]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they give in a model this small, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_tokenizer(**options):
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", **options
    )


def make_bert(**options):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), max_position_embeddings=12, initializer_range=0.3, **{**SIZES, **options}
    )
    return BertModel(config).eval()


@pytest.fixture
def folder(tmp_path):
    return save(make_bert(), tmp_path / "bert")


@pytest.fixture
def dataset():
    rows = Dataset.from_dict({"prompt": PROMPTS, "label": [float(label) for label in LABELS]})
    return DatasetDict(train=rows, validation=rows, test=rows.select([7, 0, 3]))


def save(model, path, **tokenizer_options):
    model.save_pretrained(path)
    make_tokenizer(**{"pad_token": "[PAD]", **tokenizer_options}).save_pretrained(path)
    return str(path)


def weights_of(model):
    return {name: weights.clone() for name, weights in model.state_dict().items()}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_is_a_linear_function_of_the_pooled_outputs(pooling, frozen):
    bert = make_bert()
    regressor = EncoderRegressor(bert, pooling=pooling, frozen=frozen, bias=2.5).eval()
    assert regressor.output.bias.item() == 2.5
    states = bert(input_ids=IDS, attention_mask=MASK).last_hidden_state
    pooled = states[:, 0] if pooling == "cls" else torch.stack([states[0].mean(0), states[1, :3].mean(0)])
    expected = pooled @ regressor.output.weight[0] + 2.5
    output = regressor(IDS, MASK, torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(output["logits"], expected)
    torch.testing.assert_close(output["loss"], ((expected - torch.tensor([1.0, 4.0])) ** 2).mean())
    assert set(regressor(IDS, MASK)) == {"logits"}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_row_in_a_batch_is_a_row_alone(pooling):
    regressor = EncoderRegressor(make_bert(), pooling=pooling, frozen=False).eval()
    batch = regressor(IDS, MASK)["logits"]
    alone = regressor(IDS[1:, :3], MASK[1:, :3])["logits"]
    torch.testing.assert_close(batch[1:], alone)


def test_cls_is_the_first_real_token_where_padding_comes_first():
    bert = make_bert()
    regressor = EncoderRegressor(bert, pooling="cls", frozen=True).eval()
    ids, mask = IDS.roll(2, 1)[1:], MASK.roll(2, 1)[1:]
    assert mask.tolist() == [[0, 0, 1, 1, 1]]
    states = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(regressor(ids, mask)["logits"], regressor.output(states[:, 2])[:, 0])


def test_token_types_reach_an_encoder_that_knows_them():
    regressor = EncoderRegressor(make_bert(), pooling="cls", frozen=False).eval()
    types = torch.ones_like(IDS)
    assert not torch.allclose(regressor(IDS, MASK, token_type_ids=types)["logits"], regressor(IDS, MASK)["logits"])
    regressor._takes_token_types = False
    torch.testing.assert_close(regressor(IDS, MASK, token_type_ids=types)["logits"], regressor(IDS, MASK)["logits"])


def test_pools_and_predicts_in_float32_under_autocast():
    bert = make_bert()
    regressor = EncoderRegressor(bert, pooling="mean", frozen=True, bias=1000.0).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = regressor(IDS, MASK, torch.tensor([1000.0, 1000.0]))
        states = bert(input_ids=IDS, attention_mask=MASK).last_hidden_state.float()
    pooled = torch.stack([states[0].mean(0), states[1, :3].mean(0)])
    expected = regressor.output(pooled)[:, 0]
    assert output["logits"].dtype == output["loss"].dtype == torch.float32
    torch.testing.assert_close(output["logits"], expected)


def test_a_frozen_encoder_stays_in_evaluation_mode_and_gets_no_gradient():
    regressor = EncoderRegressor(make_bert(), pooling="cls", frozen=True).train()
    assert regressor.training and not any(module.training for module in regressor.encoder.modules())
    regressor(IDS, MASK, torch.zeros(2))["loss"].backward()
    assert regressor.output.weight.grad is not None
    assert all(weights.grad is None for weights in regressor.encoder.parameters())


def test_frozen_trains_the_linear_output_alone(folder, dataset, tmp_path):
    trainer, _ = encoder_trainer(folder, dataset, pooling="cls", frozen=True, args=baseline_arguments(tmp_path))
    before = weights_of(trainer.model)
    trainer.train()
    for name, weights in trainer.model.state_dict().items():
        assert torch.equal(weights, before[name]) == name.startswith("encoder."), name
    assert sum(weights.numel() for weights in trainer.model.parameters() if weights.requires_grad) == 17


def test_trained_moves_every_weight_that_is_read(folder, dataset, tmp_path):
    trainer, _ = encoder_trainer(folder, dataset, pooling="mean", frozen=False, args=baseline_arguments(tmp_path))
    before = weights_of(trainer.model)
    trainer.train()
    for name, weights in trainer.model.state_dict().items():
        assert torch.equal(weights, before[name]) == name.startswith("encoder.pooler."), name


def test_overfits_and_predicts_one_float_a_row_in_order(dataset, tmp_path):
    folder = save(make_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), tmp_path / "bert")
    args = baseline_arguments(tmp_path, max_steps=40, train_sampling_strategy="group_by_length")
    trainer, test = encoder_trainer(folder, dataset, pooling="cls", frozen=False, args=args)
    labels = torch.tensor(dataset["train"]["label"])
    assert trainer.model.output.bias.item() == pytest.approx(labels.mean().item())
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[7]])
    assert batch["labels"].tolist() == pytest.approx([1.0, 0.1]) and batch["input_ids"].shape == (2, 7)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_rmse"] < 0.2 and metrics["eval_pearson"] > 0.95
    assert {"eval_mae", "eval_spearman"} <= set(metrics)
    output = trainer.predict(test)
    assert output.predictions.shape == (3,)
    assert output.predictions == pytest.approx([0.1, 1, 4], abs=0.4)
    assert output.label_ids == pytest.approx([0.1, 1, 4])


class _Weights(TrainerCallback):
    """Keeps the weights at each evaluation."""

    def __init__(self):
        self.at = {}

    def on_evaluate(self, args, state, control, model, **kwargs):
        self.at[state.global_step] = copy.deepcopy(weights_of(model))


@pytest.mark.parametrize("frozen", [True, False])
def test_the_step_of_the_least_rmse_is_restored_exactly(frozen, folder, dataset, tmp_path):
    dataset["validation"] = dataset["train"].map(lambda row: {"label": 4 - row["label"]})  # gets worse with training
    seen = _Weights()
    args = baseline_arguments(
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="rmse",
    )
    assert args.greater_is_better  # what TrainingArguments makes of "rmse"
    trainer, _ = encoder_trainer(folder, dataset, pooling="cls", frozen=frozen, args=args, callbacks=[seen])
    trainer.train()
    rmse = {entry["step"]: entry["eval_rmse"] for entry in trainer.state.log_history if "eval_rmse" in entry}
    best = min(rmse, key=rmse.get)
    assert best != 4 and trainer.state.best_metric == rmse[best]
    restored = trainer.model.state_dict()
    assert restored.keys() == seen.at[best].keys()
    assert all(torch.equal(weights, seen.at[best][name]) for name, weights in restored.items())
    assert any(not torch.equal(weights, seen.at[4][name]) for name, weights in restored.items())
    assert trainer.evaluate()["eval_rmse"] == rmse[best]


def test_the_same_seed_gives_the_same_weights(folder, dataset, tmp_path):
    options = {"pooling": "cls", "frozen": True}
    weights = [
        encoder_trainer(folder, dataset, args=baseline_arguments(tmp_path, seed=seed), **options)[
            0
        ].model.output.weight
        for seed in (3, 3, 4)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_labels_of_whole_numbers_stay_floats(folder, dataset, tmp_path):
    rows = Dataset.from_dict({"prompt": PROMPTS, "stars": [1, 2, 3, 4, 5, 1, 2, 3]})
    dataset = DatasetDict(train=rows, validation=rows, test=rows)
    trainer, test = encoder_trainer(
        folder, dataset, pooling="cls", frozen=True, args=baseline_arguments(tmp_path), label_column="stars"
    )
    assert test.features["label"] == Value("float64") and test["label"][4] == 5.0
    assert trainer.data_collator([test[0], test[1]])["labels"].dtype == torch.float32
    assert trainer.predict(test).label_ids.dtype.kind == "f"


@pytest.mark.parametrize(("max_length", "kept"), [(4, 2), (None, 10), (1024, 10)])
def test_a_long_prompt_loses_its_beginning(max_length, kept, folder, dataset, tmp_path, caplog):
    words = [f"w{n}" for n in range(20)]
    dataset["test"] = Dataset.from_dict({"prompt": [" ".join(words), "w1"], "label": [1.0, 2.0]})
    trainer, test = encoder_trainer(
        folder, dataset, pooling="cls", frozen=True, args=baseline_arguments(tmp_path), max_length=max_length
    )
    assert trainer.processing_class.decode(test[0]["input_ids"]) == " ".join(["[CLS]", *words[-kept:], "[SEP]"])
    assert "1 of the 2 prompts of the test dataset" in caplog.text
    assert trainer.predict(test).predictions.shape == (2,)


def test_knows_where_the_positions_of_roberta_end(dataset, tmp_path):
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(WORDS), max_position_embeddings=8, pad_token_id=0, **SIZES)
    folder = save(RobertaModel(config), tmp_path / "roberta")
    dataset["test"] = Dataset.from_dict({"prompt": ["w1 " * 20, "w2"], "label": [1.0, 2.0]})
    trainer, test = encoder_trainer(folder, dataset, pooling="mean", frozen=True, args=baseline_arguments(tmp_path))
    assert len(test[0]["input_ids"]) == 7
    assert trainer.predict(test).predictions.shape == (2,)


def test_loads_a_half_precision_encoder_in_float32(dataset, tmp_path):
    folder = save(make_bert().to(torch.bfloat16), tmp_path / "half")
    assert AutoModel.from_pretrained(folder).dtype == torch.bfloat16
    trainer, _ = encoder_trainer(folder, dataset, pooling="cls", frozen=False, args=baseline_arguments(tmp_path))
    assert {weights.dtype for weights in trainer.model.parameters()} == {torch.float32}


def test_refuses_an_unknown_pooling():
    with pytest.raises(ValueError, match=r"no pooling 'max'.*Use cls or mean"):
        EncoderRegressor(make_bert(), pooling="max", frozen=True)


@pytest.mark.parametrize(
    "decoder",
    [
        lambda: make_bert(is_decoder=True),
        lambda: GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=12)),
        "tiny_llama",
        "tiny_gemma2",
    ],
)
def test_refuses_a_model_that_reads_from_left_to_right(decoder, request):
    model = request.getfixturevalue(decoder).model if isinstance(decoder, str) else decoder()
    with pytest.raises(ValueError, match=r"reads from left to right.*needs an encoder"):
        EncoderRegressor(model, pooling="mean", frozen=True)


def test_refuses_an_encoder_with_a_decoder(dataset, tmp_path):
    config = BartConfig(
        vocab_size=len(WORDS), d_model=16, encoder_layers=1, decoder_layers=1, max_position_embeddings=12
    )
    folder = save(BartModel(config), tmp_path / "bart")
    with pytest.raises(ValueError, match="has a decoder after its encoder"):
        encoder_trainer(folder, dataset, pooling="cls", frozen=True, args=baseline_arguments(tmp_path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"prompt": [[{"role": "user", "content": "w1"}]], "label": [1.0]}, "row 0: the prompt is a list.*plain text"),
        ({"prompt": ["w1", "w2"], "label": [1.0, None]}, "row 1: the label None is not a number"),
        ({"prompt": ["w1"], "label": ["good"]}, "row 0: the label 'good' is not a number"),
        ({"prompt": ["w1"], "label": [float("nan")]}, "row 0: the label is nan"),
        ({"prompt": ["w1"], "score": [1.0]}, "the train dataset has 1 rows.*label in 'label'"),
        ({"text": ["w1"], "label": [1.0]}, "It needs at least one row, with `prompt`"),
        ({"prompt": [], "label": []}, "the train dataset has 0 rows"),
    ],
)
def test_refuses_rows_that_cannot_be_used(rows, message, folder, dataset, tmp_path):
    dataset["train"] = Dataset.from_dict(rows)
    with pytest.raises(ValueError, match=f"(?is){message}"):
        encoder_trainer(folder, dataset, pooling="cls", frozen=True, args=baseline_arguments(tmp_path))


def test_refuses_prompts_without_tokens(dataset, tmp_path):
    folder = save(make_bert(), tmp_path / "bare")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    tokenizer.save_pretrained(folder)
    dataset["test"] = Dataset.from_dict({"prompt": ["w1", " "], "label": [1.0, 2.0]})
    with pytest.raises(ValueError, match="row 1: the prompt has no tokens"):
        encoder_trainer(folder, dataset, pooling="mean", frozen=True, args=baseline_arguments(tmp_path))


def test_refuses_a_tokenizer_that_cannot_pad(dataset, tmp_path):
    folder = save(make_bert(), tmp_path / "bert", pad_token=None)
    with pytest.raises(ValueError, match="no padding token"):
        encoder_trainer(folder, dataset, pooling="cls", frozen=True, args=baseline_arguments(tmp_path))


def test_refuses_a_dataset_that_lacks_a_split(folder, dataset, tmp_path):
    del dataset["validation"]
    with pytest.raises(ValueError, match="has no validation"):
        encoder_trainer(folder, dataset, pooling="cls", frozen=True, args=baseline_arguments(tmp_path))
