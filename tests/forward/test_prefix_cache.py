"""What prompts begin with in common is run once, and changes no number."""

import numpy as np
import pytest
import torch
from support.training import GRID, make
from transformers import BloomConfig, BloomForCausalLM, FalconMambaConfig, FalconMambaForCausalLM

import raft_peft.methods.readout
from raft_peft import NumberGrid, RegressionPredictor
from raft_peft.forward.forest import common_prefix

SEVERAL = NumberGrid([0, 1, 1.5, 2, 10])
TEMPLATE = "Rate the item from 0 to 4 where 0 is bad and 4 is good, item {}, the score is"
ITEMS = [
    "tea",
    "a cup of very hot tea",
    "soup",
    "the long and winding item 27",
    "1",
    "a",
    "item 3",
    "it",
    "9",
    "27 cups",
]
PROMPTS = [TEMPLATE.format(item) for item in ITEMS]


def embedded(predictor):
    """The shapes of all token ids that are run from now on."""
    shapes = []
    predictor.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    return shapes


@pytest.mark.parametrize("grid", [GRID, SEVERAL], ids=["single tokens", "several tokens"])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gemma2"])
class TestNumbers:
    def test_are_those_of_each_prompt_alone(self, family, grid, tokenizer, request):
        predictor = RegressionPredictor(request.getfixturevalue(family), tokenizer, grid)
        alone = np.concatenate([predictor.predict([prompt]) for prompt in PROMPTS])
        assert alone.std() > 1e-4
        shapes = embedded(predictor)
        np.testing.assert_allclose(predictor.predict(PROMPTS, batch_size=4), alone, atol=1e-5)
        prefix = len(common_prefix([tokenizer(prompt).input_ids for prompt in PROMPTS]))
        assert shapes.count((1, prefix)) == 1
        distribution = predictor.predict_distribution(PROMPTS, batch_size=3)
        np.testing.assert_allclose((distribution.probs * distribution.values).sum(-1), alone, atol=1e-5)

    def test_in_parts_of_a_trie(self, family, grid, tokenizer, request, monkeypatch):
        predictor = RegressionPredictor(request.getfixturevalue(family), tokenizer, grid)
        expected = predictor.predict(PROMPTS)
        monkeypatch.setattr(raft_peft.methods.readout, "nodes_at_once", lambda *_: 1)
        np.testing.assert_allclose(predictor.predict(PROMPTS), expected, atol=1e-5)


def test_the_prefix_is_run_once_for_all_batches_and_chunks(tiny_llama, tokenizer):
    predictor = RegressionPredictor(tiny_llama, tokenizer, GRID)
    predictor.predict(PROMPTS)  # tries what the model can
    shapes = embedded(predictor)
    assert [len(chunk.predictions) for chunk in predictor.read(PROMPTS * 5, 5, chunk_size=20)] == [20, 20, 10]
    lengths = [len(tokenizer(prompt).input_ids) for prompt in PROMPTS]
    prefix = len(common_prefix([tokenizer(prompt).input_ids for prompt in PROMPTS]))
    assert shapes[0] == (1, prefix)
    assert shapes.count((1, prefix)) == 1
    assert all(rows * columns <= 5 * (max(lengths) - prefix) for rows, columns in shapes[1:])


def test_no_argument_is_one_that_transformers_gives_up(tiny_llama, tokenizer, recwarn):
    predictor = RegressionPredictor(tiny_llama, tokenizer, GRID)
    predictor.predict(PROMPTS)
    assert predictor.readout.can_cache_prefixes(tiny_llama)
    assert not [warning for warning in recwarn if "past_key_values" in str(warning.message)]


def test_a_later_prediction_sees_the_weights_of_then(tiny_llama, tokenizer):
    predictor = RegressionPredictor(tiny_llama, tokenizer, GRID)
    before = predictor.predict(PROMPTS)
    torch.nn.init.normal_(tiny_llama.model.layers[0].self_attn.k_proj.weight)
    after = predictor.predict(PROMPTS)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, np.concatenate([predictor.predict([prompt]) for prompt in PROMPTS]), atol=1e-5)


@pytest.mark.parametrize("options", [{"attention": "bidirectional"}, {"method": "pooled"}])
def test_not_where_a_prompt_is_read_backwards_or_whole(options, tiny_llama, tokenizer, tmp_path, rows):
    trainer = make(tiny_llama, tokenizer, tmp_path, rows, options={**options, "max_steps": 1})
    trainer.train()
    predictor = RegressionPredictor(tiny_llama, tokenizer, GRID, **options)
    shapes = embedded(predictor)
    found = predictor.predict(PROMPTS)
    # A prefix by itself would be one row more.
    assert sum(shape[0] for shape in shapes) == len(PROMPTS)
    np.testing.assert_allclose(found, np.concatenate([predictor.predict([prompt]) for prompt in PROMPTS]), atol=1e-5)


@pytest.mark.parametrize("family", ["bloom", "falcon_mamba"])
def test_not_where_the_architecture_cannot(family, tokenizer):
    torch.manual_seed(0)
    if family == "bloom":  # whose positions are in its masks
        model = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4))
    else:  # whose past is a state
        config = FalconMambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4)
        model = FalconMambaForCausalLM(config)
    predictor = RegressionPredictor(model, tokenizer, GRID)
    found = predictor.predict(PROMPTS)
    np.testing.assert_allclose(found, np.concatenate([predictor.predict([prompt]) for prompt in PROMPTS]), atol=1e-5)


@pytest.mark.parametrize("folder", ["smollm2", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_real_models(folder, request):
    predictor = RegressionPredictor.from_pretrained(request.getfixturevalue(folder), grid=GRID, dtype="float32")
    assert predictor.readout.can_cache_prefixes(predictor.model)
    found = predictor.predict(PROMPTS[:4])
    alone = np.concatenate([predictor.predict([prompt]) for prompt in PROMPTS[:4]])
    np.testing.assert_allclose(found, alone, atol=5e-5)
