import json

import pytest
import torch
from peft import get_peft_model
from support.training import GRID, lora, make

from raft_peft import RegressionPredictor
from raft_peft.prediction.calibrating.weights import changed_since

PROMPTS = [f"Rate item {index}, the score is" for index in range(12)]
LABELS = [float(index % 5) for index in range(12)]
ROWS = [{"prompt": prompt, "label": label} for prompt, label in zip(PROMPTS, LABELS, strict=True)]


@pytest.fixture(params=["adapter", "named adapter", "whole", "head"])
def calibrated(request, tiny_llama, tokenizer, tmp_path):
    """The folder of a model that was calibrated in memory, and its intervals there."""
    tiny_llama.save_pretrained(tmp_path / "base")
    model = type(tiny_llama).from_pretrained(tmp_path / "base")
    if request.param == "named adapter":
        model = get_peft_model(model, lora(), adapter_name="stars")
    options = {"max_steps": 3, "learning_rate": 0.05}
    settings = {"method": "special_token"} if request.param == "head" else {}
    arguments = {"peft_config": lora()} if request.param == "adapter" else {}
    trainer = make(model, tokenizer, tmp_path / "run", ROWS, options={**options, **settings}, **arguments)
    trainer.train()
    trainer.save_model()
    predictor = RegressionPredictor(trainer.model, tokenizer, GRID, max_length=trainer.args.max_length, **settings)
    predictor.calibrate(PROMPTS, LABELS).save(tmp_path / "run")
    return tmp_path / "run", predictor.predict(PROMPTS, interval=0.8)


def test_a_calibration_in_memory_is_that_of_the_folder(calibrated):
    folder, expected = calibrated
    found = RegressionPredictor.from_pretrained(folder).predict(PROMPTS, interval=0.8)
    assert found.low.tolist() == pytest.approx(expected.low.tolist(), abs=1e-4)
    assert found.high.tolist() == pytest.approx(expected.high.tolist(), abs=1e-4)


def test_other_weights_and_dtypes_are_refused(calibrated):
    folder, _ = calibrated
    with pytest.raises(ValueError, match=r"made with another .*dtype.*Calibrate"):
        RegressionPredictor.from_pretrained(folder, dtype=torch.bfloat16).predict(PROMPTS, interval=0.8)
    predictor = RegressionPredictor.from_pretrained(folder)
    trained = [w for name, w in predictor.model.named_parameters() if "up_proj" in name and "base_layer" not in name]
    weight = next(predictor.readout.head.parameters(), trained[-1])
    with torch.no_grad():
        weight.add_(0.01)
    predictor.predict(PROMPTS)
    with pytest.raises(ValueError, match=r"made with another weights\. Calibrate"):
        predictor.predict(PROMPTS, interval=0.8)


def test_a_calibration_of_an_earlier_version_says_nothing_of_weights(calibrated):
    folder, expected = calibrated
    path = folder / "calibration.json"
    written = json.loads(path.read_text())
    for name in ("dtype", "quantization", "weights"):
        del written["settings"][name]
    path.write_text(json.dumps(written))
    found = RegressionPredictor.from_pretrained(folder).predict(PROMPTS, interval=0.8)
    assert found.low.tolist() == pytest.approx(expected.low.tolist(), abs=1e-4)


def test_what_counts_as_changed():
    dense = {"decision": "mean", "dtype": "float32", "quantization": None, "weights": "a"}
    assert changed_since(dense, dense) == []
    assert changed_since(dense, {**dense, "quantization": {"load_in_4bit": "True"}}) == ["quantization"]
    assert changed_since(dense, {**dense, "decision": "mode", "weights": "b"}) == ["decision", "weights"]
    # Where weights lie on the disk, it is not known.
    assert changed_since(dense, {**dense, "weights": None}) == []
    assert changed_since({"decision": "mean"}, dense) == []
    # Prompts without a template may have been written by the same one.
    written = {**dense, "prompt_template": "Review: {text} Stars:"}
    assert changed_since(written, {**written, "prompt_template": "{text}"}) == ["prompt_template"]
    assert changed_since(dense, written) == changed_since(written, {**dense, "prompt_template": None}) == []
