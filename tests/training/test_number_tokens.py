"""Tokens of their own for numbers: their rows, their training, and what is saved of them."""

import copy
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file
from support.training import make
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PhiConfig,
)

from raft_peft import NumberGrid, RegressionPredictor
from raft_peft.data.labels import target_texts
from raft_peft.grid.resolution import resolve
from raft_peft.training.number_tokens import add_number_tokens, with_number_tokens

IDS = list(range(420, 429))  # of 0.0, 0.5, ... 4.0
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 2, "initializer_range": 0.4}
BASES = {
    "tied": lambda **changes: LlamaConfig(**{**SIZES, **SPECIAL, "tie_word_embeddings": True, **changes}),
    "untied": lambda **changes: LlamaConfig(**{**SIZES, **SPECIAL, "tie_word_embeddings": False, **changes}),
    "gpt2": lambda **changes: GPT2Config(n_embd=32, n_layer=2, n_head=4, **SPECIAL, **changes),
    "gemma2": lambda **changes: Gemma2Config(**SIZES, **SPECIAL, num_key_value_heads=2, head_dim=8, **changes),
    "biased": lambda **changes: PhiConfig(**SIZES, **SPECIAL, **changes),
}


@pytest.fixture
def open_base(tokenizer, tmp_path):
    """Opens a base model from its folder, as a user does."""
    vocab_size = len(tokenizer)

    def open_it(name, *, dtype=None, quantization_config=None, **changes):
        if not (tmp_path / name).is_dir():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(BASES[name](**{"vocab_size": vocab_size, **changes})).to(dtype)
            if name == "biased":
                torch.nn.init.normal_(model.lm_head.bias)
            model.save_pretrained(tmp_path / name)
        return AutoModelForCausalLM.from_pretrained(tmp_path / name, quantization_config=quantization_config).eval()

    return open_it


def with_tokens(model, tokenizer):
    return model, add_number_tokens(model, tokenizer, (0, 4), granularity=0.5)


def trained(model, grid, tokenizer, folder, rows, *, options=None, **arguments):
    settings = {"max_steps": 3, "learning_rate": 0.05, "lr_scheduler_type": "constant", **(options or {})}
    arguments = {"peft_config": LoraConfig(target_modules="all-linear", lora_dropout=0.0), **arguments}
    trainer = make(model, tokenizer, folder, rows, grid=grid, options=settings, **arguments)
    trainer.train()
    return trainer


def matrices(model):
    return [layer.weight.detach().clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]


def expect_equal(ours, theirs):
    for one, other in zip(matrices(ours), matrices(theirs), strict=True):
        assert torch.equal(one, other)


def expect_reload(trainer, folder, rows, *, atol=0, **options):
    """The saved folder predicts what the trained model predicts, to the last bit unless said otherwise."""
    trainer.save_model(str(folder))
    predictor = RegressionPredictor.from_pretrained(folder, **options)
    prompts, settings = [row["prompt"] for row in rows], trainer.args.method_settings()
    live = RegressionPredictor(trainer.model, trainer.processing_class, trainer.grid, **settings).predict(prompts)
    assert np.ptp(live) > 0
    np.testing.assert_allclose(predictor.predict(prompts), live, rtol=0, atol=atol)
    return predictor


class TestTheGrid:
    @pytest.mark.parametrize(
        ("values", "granularity", "texts"),
        [
            ([3, 1, 2], None, ["3.0", "1.0", "2.0"]),
            ([0, 0.25, 1], None, ["0.00", "0.25", "1.00"]),
            ((-1, 1), 1, ["-1.0", "0.0", "1.0"]),
            ((0, 0.1), 0.05, ["0.00", "0.05", "0.10"]),
            ({1: "<one>", 2: "<two>"}, None, ["<one>", "<two>"]),
            (NumberGrid({1: "<one>", 2: "<two>"}), None, ["<one>", "<two>"]),
        ],
    )
    def test_texts(self, values, granularity, texts, tiny_llama, tokenizer):
        grid = add_number_tokens(tiny_llama, tokenizer, values, granularity=granularity)
        assert list(grid.texts) == list(tiny_llama.number_token_ids) == texts
        assert [tokenizer.decode(token_id) for token_id in tiny_llama.number_token_ids.values()] == texts

    @pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "smollm2_tokenizer", "gemma3_tokenizer"])
    def test_one_token_where_it_stands_alone(self, name, request, tiny_llama):
        tokenizer = copy.deepcopy(request.getfixturevalue(name))
        tiny_llama.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        inside = "v 10.55 and 20.5 and 0.55, a0.5"
        before = tokenizer(inside)["input_ids"]
        grid = add_number_tokens(tiny_llama, tokenizer, (-1, 10), granularity=0.5)
        assert tokenizer(inside)["input_ids"] == before
        ids = [(token_id,) for token_id in tiny_llama.number_token_ids.values()]
        for prompt, separator in (("The score is", None), ("Score:", ""), ("user: good?\nassistant:\n", None)):
            assert list(resolve(grid, tokenizer, prompt, separator=separator).token_ids) == ids

    def test_where_it_would_not_be_read_is_an_error(self, tiny_llama, tokenizer):
        grid = add_number_tokens(tiny_llama, tokenizer, (0, 4), granularity=0.5)
        assert [len(ids) for ids in resolve(grid, tokenizer, "score", separator=": ").token_ids] == [1] * 9
        with pytest.raises(ValueError, match=r"'0\.0' has a token of its own, but after 'the score is'.*End the"):
            resolve(grid, tokenizer, "the score is", separator="")

    def test_targets_are_written_as_the_nearest_number(self):
        grid = NumberGrid({0: "0.0", 0.5: "0.5", 1: "1.0"})
        assert target_texts([0, 0.2, 0.3, 0.5, 0.9], grid) == ["0.0", "0.0", "0.5", "0.5", "1.0"]
        assert target_texts([0.2], NumberGrid([0, 0.5, 1])) == ["0.2"]
        with pytest.raises(ValueError, match=r"row 1: the label 1\.5 has no text"):
            target_texts([1, 1.5], grid)
        with pytest.raises(ValueError, match=r"row 0: the label 0\.2 has no text.*A, B"):
            target_texts([0.2], NumberGrid({0: "A", 1: "B"}))


class TestInitialRows:
    @pytest.mark.parametrize("name", BASES)
    @pytest.mark.parametrize("init", ["zero", "first", "average", "random"])
    def test_by_hand(self, init, name, open_base, tokenizer):
        def parameters():
            return [*matrices(model), *([model.lm_head.bias.detach().clone()] if name == "biased" else [])]

        model = open_base(name)
        old, known = parameters(), len(tokenizer)
        pieces = [tokenizer(f"{step / 20:.2f}", add_special_tokens=False)["input_ids"] for step in range(101)]
        assert {len(ids) for ids in pieces} == {4}
        add_number_tokens(model, tokenizer, (0, 5), init=init, granularity=0.05)
        assert model.config.vocab_size == len(tokenizer) == known + 101
        assert torch.equal(*matrices(model)) == (name in ("tied", "gpt2", "gemma2"))
        for before, after in zip(old, parameters(), strict=True):
            assert torch.equal(after[:known], before)
            new = after[known:]
            if init == "zero":
                assert torch.equal(new, torch.zeros(101, *before.shape[1:]))
            elif init == "first":
                assert torch.equal(new, before[[ids[0] for ids in pieces]])
            elif init == "average":
                assert torch.allclose(new, sum(before[ids] for ids in torch.tensor(pieces).T) / 4)
            else:
                assert math.isclose(new.std(), before.std(), rel_tol=0.3)
                assert abs(new.mean()) < before.std() / 3

    def test_spare_rows_are_used(self, open_base, tokenizer):
        model = open_base("untied", vocab_size=450)
        embedding, old = model.get_input_embeddings().weight, matrices(model)
        add_number_tokens(model, tokenizer, (0, 4), granularity=0.5, init="zero")
        assert model.get_input_embeddings().weight is embedding
        for before, after in zip(old, matrices(model), strict=True):
            before[IDS] = 0
            assert torch.equal(after, before)


class TestTraining:
    @pytest.mark.parametrize(
        ("name", "dtype"),
        [("tied", None), ("untied", None), ("untied", torch.bfloat16), ("gpt2", None), ("gemma2", torch.bfloat16)],
    )
    def test_the_new_rows_alone_are_trained_and_saved(self, name, dtype, open_base, tokenizer, tmp_path, rows):
        model, grid = with_tokens(open_base(name, dtype=dtype), tokenizer)
        before = matrices(model)
        trainer = trained(model, grid, tokenizer, tmp_path / "run", rows)
        after = matrices(trainer.model)
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old[:420], new[:420])
        assert (after[1][IDS] != before[1][IDS]).any(-1).all()  # each number's logit is in the loss
        assert torch.equal(*after) == torch.equal(*before) == (name in ("tied", "gpt2", "gemma2"))
        assert expect_reload(trainer, tmp_path / "saved", rows).model.dtype == (dtype or torch.float32)
        expect_equal(trainer.model, AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved"))
        saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
        size = (tmp_path / "saved" / "adapter_model.safetensors").stat().st_size
        assert [tensor.shape for key, tensor in saved.items() if "lora_" not in key] == [(9, 32)] * (
            1 + (name == "untied")
        )
        assert (
            size - sum(tensor.nbytes for key, tensor in saved.items() if "lora_" in key) < before[0].float().nbytes / 5
        )

    @pytest.mark.parametrize("name", ["tied", "untied"])
    def test_on_a_quantized_base(self, name, open_base, tokenizer, tmp_path, rows):
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
        quantization = BitsAndBytesConfig(**options)
        base = open_base(name, hidden_size=128, dtype=torch.bfloat16, quantization_config=quantization)
        model, grid = with_tokens(base, tokenizer)
        before = matrices(model)[1]
        trainer = trained(model, grid, tokenizer, tmp_path / "run", rows, options={"bf16": True})
        assert trainer.model.is_loaded_in_4bit
        assert (matrices(trainer.model)[1][IDS] != before[IDS]).any(-1).all()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expect_reload(trainer, tmp_path / "saved", rows, quantization_config=quantization)

    def test_full_fine_tuning(self, open_base, tokenizer, tmp_path, rows):
        model, grid = with_tokens(open_base("untied"), tokenizer)
        before = matrices(model)[1]
        trainer = trained(model, grid, tokenizer, tmp_path / "run", rows, peft_config=None)
        assert (matrices(trainer.model)[1][IDS] != before[IDS]).any(-1).all()
        expect_reload(trainer, tmp_path / "saved", rows)

    def test_cross_entropy(self, open_base, tokenizer, tmp_path, rows):
        """Each row is learnt by heart, as the one token of its label."""
        model, grid = with_tokens(open_base("tied"), tokenizer)
        options = {"method": "ce", "max_steps": 40, "learning_rate": 0.02}
        trainer = trained(model, grid, tokenizer, tmp_path / "run", rows, options=options)
        targets = [[IDS[round(2 * row["label"])], tokenizer.eos_token_id] for row in rows]
        assert list(trainer.train_dataset["target_ids"]) == targets
        predicted = expect_reload(trainer, tmp_path / "saved", rows).predict([row["prompt"] for row in rows])
        np.testing.assert_array_equal(predicted, [row["label"] for row in rows])

    def test_checkpoints(self, open_base, tokenizer, tmp_path, rows):
        """The best one is loaded at the end, and training resumes from one."""
        strategy = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        best_first = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}

        def make_trainer(**options):
            fresh = copy.deepcopy(tokenizer)
            model, grid = with_tokens(open_base("untied"), fresh)
            options = {"max_steps": 4, "learning_rate": 0.05, **strategy, **options}
            arguments = {"eval_dataset": Dataset.from_list(rows), "peft_config": LoraConfig(target_modules=["q_proj"])}
            return make(model, fresh, tmp_path / "run", rows, grid=grid, options=options, **arguments)

        whole = make_trainer(**best_first)
        whole.train()
        assert whole.state.best_model_checkpoint.endswith("checkpoint-2")
        expect_equal(whole.model, AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-2"))
        last = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-4")
        resumed = make_trainer()
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
        for ours, theirs in zip(matrices(resumed.model), matrices(last), strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_training_goes_on_from_an_adapter(self, open_base, tokenizer, tmp_path, rows):
        model, grid = with_tokens(open_base("untied"), tokenizer)
        trained(model, grid, tokenizer, tmp_path / "one", rows).save_model()
        opened = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "one", is_trainable=True)
        before = matrices(opened)[1]
        fresh = AutoTokenizer.from_pretrained(tmp_path / "one")
        again = trained(opened, grid, fresh, tmp_path / "two", rows, peft_config=None)
        assert (matrices(again.model)[1][IDS] != before[IDS]).any(-1).all()
        expect_reload(again, tmp_path / "two", rows)
        one, two = ((tmp_path / run / "adapter_model.safetensors").stat().st_size for run in ("one", "two"))
        assert one == two


class TestTheAdaptersConfiguration:
    @pytest.mark.parametrize(
        ("name", "given", "expected"),
        [
            ("tied", None, {"embed_tokens": IDS}),
            ("untied", None, {"embed_tokens": IDS, "lm_head": IDS}),
            ("gpt2", None, {"wte": IDS}),
            ("untied", [7], {"embed_tokens": [7, *IDS], "lm_head": IDS}),
            ("untied", {"model.embed_tokens": [7]}, {"model.embed_tokens": [7, *IDS], "lm_head": IDS}),
            ("tied", {"lm_head": [7]}, {"embed_tokens": IDS, "lm_head": [7, *IDS]}),
        ],
    )
    def test_the_tokens_join(self, name, given, expected, open_base, tokenizer):
        model, _ = with_tokens(open_base(name), tokenizer)
        joined = with_number_tokens(LoraConfig(trainable_token_indices=given), model)
        assert joined.trainable_token_indices == expected

    @pytest.mark.parametrize(
        ("name", "kind", "whole", "expected"),
        [
            ("untied", LoraConfig, ["embed_tokens", "lm_head"], None),
            ("tied", LoraConfig, ["embed_tokens"], None),
            ("untied", IA3Config, ["embed_tokens", "lm_head"], None),
            ("biased", LoraConfig, ["lm_head"], {"embed_tokens": IDS}),
        ],
    )
    def test_what_trains_whole(self, name, kind, whole, expected, open_base, tokenizer, tmp_path, rows):
        model, grid = with_tokens(open_base(name), tokenizer)
        peft_config = kind(modules_to_save=whole)
        joined = with_number_tokens(peft_config, model)
        assert getattr(joined, "trainable_token_indices", None) == expected
        trainer = trained(model, grid, tokenizer, tmp_path / "run", rows, peft_config=peft_config)
        expect_reload(trainer, tmp_path / "saved", rows, atol=1e-5)

    def test_another_new_token_is_saved_too(self, open_base, tokenizer, tmp_path, rows):
        """No adapter holds its row, so the whole embedding is written."""
        base = open_base("tied")
        tokenizer.add_tokens(["<score>"])
        base.resize_token_embeddings(len(tokenizer))
        model, grid = with_tokens(base, tokenizer)
        rows = [{**row, "prompt": f"{row['prompt']} <score>"} for row in rows]
        expect_reload(trained(model, grid, tokenizer, tmp_path / "run", rows), tmp_path / "saved", rows)

    @pytest.mark.parametrize(
        ("name", "peft_config", "message"),
        [
            ("tied", IA3Config(), r"IA3Config cannot train single tokens.*\['embed_tokens', 'lm_head'\]"),
            ("untied", IA3Config(modules_to_save=["embed_tokens"]), r"modules_to_save=\['lm_head'\]"),
            ("tied", LoraConfig(target_modules=["embed_tokens"]), "'embed_tokens' is among .* target_modules"),
            ("biased", LoraConfig(), r"'lm_head' has a bias.*modules_to_save=\['lm_head'\]"),
        ],
    )
    def test_what_cannot_train_them(self, name, peft_config, message, open_base, tokenizer):
        model, _ = with_tokens(open_base(name), tokenizer)
        with pytest.raises(ValueError, match=message):
            with_number_tokens(peft_config, model)


class TestRefusals:
    @pytest.mark.parametrize(
        ("values", "options", "message"),
        [
            ([1, 2], {"init": "mean"}, "init='mean' is not known"),
            ([0, 1, 2], {"granularity": 0.5}, "the least and the greatest number"),
            ((0, 1), {"granularity": 0.3}, "do not lead from 0 to 1"),
            (NumberGrid([1, 2.5]), {}, "'1' are ordinary tokens"),
        ],
    )
    def test_values(self, values, options, message, tiny_llama, tokenizer):
        with pytest.raises(ValueError, match=message):
            add_number_tokens(tiny_llama, tokenizer, values, **options)
        assert len(tokenizer) == tiny_llama.config.vocab_size == 420

    def test_models(self, tiny_llama, tokenizer):
        with pytest.raises(ValueError, match=r"has an adapter already.*base model"):
            add_number_tokens(get_peft_model(copy.deepcopy(tiny_llama), LoraConfig()), tokenizer, [1, 2])
        quantized = copy.deepcopy(tiny_llama)
        quantized.lm_head.weight = torch.nn.Parameter(torch.zeros(420, 16, dtype=torch.uint8), requires_grad=False)
        with pytest.raises(ValueError, match="is quantized"):
            add_number_tokens(quantized, tokenizer, [1, 2])
        add_number_tokens(tiny_llama, tokenizer, [1, 2])
        with pytest.raises(ValueError, match=r"has the tokens '2\.0' already"):
            add_number_tokens(tiny_llama, tokenizer, [2, 3])
        tiny_llama.resize_token_embeddings(400)
        with pytest.raises(ValueError, match="422 tokens, but the model's embedding only 400 rows"):
            add_number_tokens(tiny_llama, tokenizer, [3, 4])

    def test_trainers(self, open_base, tokenizer, tmp_path, rows):
        old = copy.deepcopy(tokenizer)
        model, grid = with_tokens(open_base("tied"), tokenizer)
        for forgotten in (None, old):
            with pytest.raises(ValueError, match=r"the tokenizer does not have them.*processing_class"):
                make(model, forgotten, tmp_path / "run", rows, grid=grid)
        with pytest.raises(ValueError, match=r"the grid is of the texts '0', '0\.5'"):
            make(model, tokenizer, tmp_path / "run", rows, grid=[0, 0.5])
        with pytest.raises(ValueError, match="adapter does not train its tokens"):
            make(get_peft_model(model, LoraConfig()), tokenizer, tmp_path / "run", rows, grid=grid)
