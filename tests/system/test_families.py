"""Every family of decoders: trainer, predictor and a computation by hand agree, and what is saved loads."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from support.training import make
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from raft_peft import NumberGrid, RegressionPredictor
from raft_peft.data.prompts import PromptEncoder

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HEAD = {"head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW = {"sliding_window": 4}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
FAMILIES = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": {**SIZES, **HEAD},
    "gemma": {**SIZES, **HEAD},
    "gemma2": {**SIZES, **HEAD, **WINDOW, "final_logit_softcapping": 2.0},
    "gemma3_text": {**SIZES, **HEAD, **WINDOW},
    "mistral": {**SIZES, **WINDOW},
    "phi3": SIZES,
    "gpt2": GPT2,
    "gpt_neox": {name: value for name, value in SIZES.items() if name != "num_key_value_heads"},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
    "olmo": SIZES,
    "olmo2": SIZES,
    "olmo3": {**SIZES, **WINDOW},
    "cohere": {**SIZES, "logit_scale": 0.5},
    "cohere2": {**SIZES, **WINDOW, "logit_scale": 0.5},
    "granite": {**SIZES, "logits_scaling": 2.0},
    "falcon_mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "gpt_oss": {**SIZES, **HEAD, **EXPERTS, **WINDOW},
    "mixtral": {**SIZES, **EXPERTS},
    "qwen3_moe": {**SIZES, **HEAD, **EXPERTS, "decoder_sparse_step": 1},
    "deepseek_v3": {
        **SIZES,
        **EXPERTS,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
}
WITH_IMAGES = {
    "gemma3": {
        "text_config": {**SIZES, **HEAD, "model_type": "gemma3_text"},
        "vision_config": {**VISION, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
    },
    "llava": {
        "text_config": {**SIZES, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
    },
}
PROMPTS = ["Rate tea from 0 to 4, the score is", "Rate a cup of very hot tea from 0 to 4, the score is", "Rate it:"]
GRID = [0, 1, 2, 3, 4]
OF_SEVERAL_TOKENS = [0, 1, 1.5, 2, 10]


def tiny(family, tokenizer):
    torch.manual_seed(0)
    special = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 2, "initializer_range": 0.2}
    if family in WITH_IMAGES:
        options = {
            name: dict(value) if isinstance(value, dict) else value for name, value in WITH_IMAGES[family].items()
        }
        options["text_config"] |= {"vocab_size": len(tokenizer), **special}
        config = AutoConfig.for_model(family, **options, image_token_index=3)
        return AutoModelForImageTextToText.from_config(config).eval()
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **special, **FAMILIES[family])
    return AutoModelForCausalLM.from_config(config).eval()


def log_prob(model, prompt_ids, tokens):
    """Of these tokens behind a prompt: a plain forward pass, and the sum along them."""
    ids = torch.tensor([[*prompt_ids, *tokens]])
    with torch.no_grad():
        log_probs = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    return float(sum(log_probs[place, token] for place, token in enumerate(tokens, len(prompt_ids) - 1)))


def by_hand(model, encoder, grid):
    """Each prompt alone, the product of the whole vocabulary's probabilities along each number's tokens."""
    numbers = []
    for prompt in encoder.encode([{"prompt": text} for text in PROMPTS]):
        probs = [math.exp(log_prob(model, prompt.input_ids, tokens)) for tokens in prompt.grid_token_ids]
        numbers.append(sum(value * prob for value, prob in zip(grid, probs, strict=True)))
    return numbers


@pytest.mark.parametrize("family", [*FAMILIES, *WITH_IMAGES])
def test_trainer_predictor_and_hand_agree(family, tokenizer, tmp_path):
    model = tiny(family, tokenizer)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": prompt, "label": 1.0 + index} for index, prompt in enumerate(PROMPTS)]
    loaded = type(model).from_pretrained(tmp_path / "base", dtype="float32")
    settings = {"max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 3}
    modules = ["in_proj", "x_proj"] if family == "falcon_mamba" else "all-linear"  # PEFT refuses its out_proj
    peft_config = LoraConfig(r=4, target_modules=modules)
    trainer = make(loaded, tokenizer, tmp_path / "out", rows, options=settings, peft_config=peft_config)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    zero_shot = trainer.predict(Dataset.from_list(rows)).predictions
    assert zero_shot == pytest.approx(by_hand(model, trainer.encoder, GRID), abs=2e-4)

    trainer.train()
    for name, weight in trainer.model.named_parameters():
        unused = ("vision", "multi_modal_projector")  # text-only rows do not pass through them
        if "lora_B" in name and not any(part in name for part in unused):
            assert not torch.equal(weight, before[name]), name
        elif "lora_" not in name:
            assert torch.equal(weight, before[name]), name
    trained = trainer.predict(Dataset.from_list(rows)).predictions
    assert abs(trained - zero_shot).max() > 1e-3

    trainer.save_model()
    predictor = RegressionPredictor.from_pretrained(tmp_path / "out", device_map="cpu")
    assert predictor.predict(PROMPTS) == pytest.approx(trained, abs=2e-4)
    assert predictor.predict(PROMPTS) == pytest.approx(by_hand(predictor.model, trainer.encoder, GRID), abs=2e-4)


@pytest.mark.parametrize("family", [*FAMILIES, *WITH_IMAGES])
def test_numbers_of_several_tokens(family, tokenizer):
    model = tiny(family, tokenizer)
    predictor = RegressionPredictor(model, tokenizer, OF_SEVERAL_TOKENS, number_end="grid")
    grid = NumberGrid(OF_SEVERAL_TOKENS)
    distribution = predictor.predict_distribution(PROMPTS)
    for row, prompt in enumerate(PromptEncoder(tokenizer, grid).encode([{"prompt": text} for text in PROMPTS])):
        for column, tokens in enumerate(prompt.grid_token_ids):
            path = log_prob(model, prompt.input_ids, tokens)
            if OF_SEVERAL_TOKENS[column] in (0, 1.5, 2, 10):  # 1 may also go on as 1.5 and 10
                assert float(distribution.log_probs[row, column]) == pytest.approx(path, abs=1e-3)
            else:
                assert float(distribution.log_probs[row, column]) < path


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_auxiliary_loss_of_experts_is_kept(family, tokenizer, tmp_path):
    rows = [{"prompt": prompt, "label": 2.0} for prompt in PROMPTS]
    losses = []
    for coefficient in (0.0, 0.5):
        model = tiny(family, tokenizer)
        model.config.output_router_logits = True
        model.config.router_aux_loss_coef = coefficient
        model.router_aux_loss_coef = coefficient
        options = {
            "max_steps": 1,
            "per_device_train_batch_size": 3,
            "logging_steps": 1,
            "router_aux_loss_coef": coefficient,
        }
        trainer = make(model, tokenizer, tmp_path / str(coefficient), rows, options=options)
        batch = next(iter(trainer.get_train_dataloader()))
        with torch.no_grad():
            auxiliary = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_router_logits=True
            ).aux_loss
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] - losses[0] == pytest.approx(0.5 * float(auxiliary), abs=2e-3)
