"""One predictor in many threads, as in a web service: the numbers of one thread, and the model unchanged."""

import threading

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from support.modules import attributes
from support.training import lora, make
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from raft_peft import NumberGrid, RegressionPredictor, TextRegressionPipeline
from raft_peft.forward.one_at_a_time import turn_of

THREADS, REQUESTS = 8, 50
SINGLE, SEVERAL = NumberGrid(range(5)), NumberGrid([0, 1, 1.5, 2, 10])
ITEMS = ("tea", "a cup of very hot tea", "soup", "the long and winding item 27", "1", "a", "item 3", "it")
PROMPTS = [f"Rate {item} from 0 to 4, the score is" for item in ITEMS]


def in_threads(predict):
    """What every thread was given for its requests: one prompt, or several of one beginning, in turns."""
    requests = [PROMPTS[index : index + 1 + index % 3] for index in range(len(PROMPTS))]
    expected = [np.asarray(predict(request)) for request in requests]
    wrong, start = [], threading.Barrier(THREADS)

    def serve(number):
        start.wait()
        for turn in range(REQUESTS):
            index = (number + turn) % len(requests)
            try:
                np.testing.assert_allclose(predict(requests[index]), expected[index], atol=1e-5, rtol=0)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.fixture
def base(tokenizer, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=1, eos_token_id=2, initializer_range=0.4, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("grid", [SINGLE, SEVERAL], ids=["single tokens", "several tokens"])
@pytest.mark.parametrize("kind", ["dense", "LoRA", "NF4", "LoRA on NF4"])
def test_a_predictor(kind, grid, base, tokenizer):
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4") if "NF4" in kind else None
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization)
    if "LoRA" in kind:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    predictor = RegressionPredictor(model, tokenizer, grid, renormalize=True)
    # The first pass of a 4-bit layer settles the dtype that it computes in.
    predictor.predict(PROMPTS)
    before = attributes(model)
    assert in_threads(lambda prompts: predictor.predict(prompts, show_progress=False)) == []
    assert attributes(model) == before


def test_a_predictor_whose_first_requests_come_together(tiny_gemma2, tokenizer):
    """What the model can (trees, prefix caches) is tried then, with other windows, on no model that others use."""
    expected = RegressionPredictor(tiny_gemma2, tokenizer, SEVERAL, renormalize=True).predict(PROMPTS)
    predictor = RegressionPredictor(tiny_gemma2, tokenizer, SEVERAL, renormalize=True)
    before, found = attributes(tiny_gemma2), []
    threads = [threading.Thread(target=lambda: found.append(predictor.predict(PROMPTS))) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        np.testing.assert_allclose(one, expected, atol=1e-5, rtol=0)
    assert len(found) == THREADS and attributes(tiny_gemma2) == before


@pytest.mark.parametrize("method", ["pooled", "zero_shot"])
def test_hidden_states_and_generated_text(method, tiny_llama, tokenizer, tmp_path, rows):
    if method == "pooled":
        options = {"method": method, "max_steps": 1}
        make(tiny_llama, tokenizer, tmp_path, rows, grid=SINGLE, options=options).train()
    predictor = RegressionPredictor(tiny_llama, tokenizer, SINGLE, method=method)
    before = attributes(tiny_llama)
    assert in_threads(lambda prompts: predictor.predict(prompts, show_progress=False)) == []
    assert attributes(tiny_llama) == before


def test_an_evaluation_of_the_trainer_changes_nothing_on_the_model(tiny_llama, tokenizer, tmp_path, rows):
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, peft_config=lora())
    trainer.train()
    trainer.model.eval()
    before = attributes(trainer.model)
    trainer.predict(Dataset.from_list(rows))
    assert attributes(trainer.model) == before


def test_the_pipeline(tiny_llama, tokenizer):
    scorer = TextRegressionPipeline(tiny_llama, tokenizer, grid=SINGLE, renormalize=True)
    assert in_threads(lambda prompts: [one["prediction"] for one in scorer(prompts)]) == []


def test_models_that_change_in_a_forward_pass_are_run_by_one_thread_at_a_time(tokenizer):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": 8, **sizes}
    torch.manual_seed(0)
    plain, growing = (LlamaForCausalLM(LlamaConfig(**options, **more)) for more in ({}, {"rope_parameters": rope}))
    assert turn_of(plain) is not turn_of(growing) and turn_of(growing) is turn_of(growing)
    predictor = RegressionPredictor(growing, tokenizer, SINGLE, renormalize=True)
    with turn_of(growing):
        waiting = threading.Thread(target=lambda: predictor.predict(PROMPTS))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
    waiting.join()
