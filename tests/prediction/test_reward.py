"""A predictor as a reward of TRL's trainers."""

import pytest
from datasets import Dataset
from support.training import lora, make

from examples.train_with_reward import train
from raft_peft import RegressionPredictor

TEMPLATE = "Q: {prompt} A: {completion} Hint: {hint} Score:"


@pytest.fixture
def predictor(tiny_llama, tokenizer):
    return RegressionPredictor(tiny_llama, tokenizer, [1, 2, 3])


def test_is_the_prediction_of_the_written_prompt(predictor):
    reward = predictor.as_reward(TEMPLATE)
    chat = [{"role": "user", "content": "two?"}]
    found = reward(["one?", chat], ["1", [{"role": "assistant", "content": "2"}]], hint=["a", "b"], trainer_state=None)
    prompts = ["Q: one? A: 1 Hint: a Score:", "Q: two? A: 2 Hint: b Score:"]
    assert found == pytest.approx(predictor.predict(prompts).tolist(), abs=1e-6)


def test_a_chat_of_several_messages_names_their_roles(predictor):
    reward = predictor.as_reward("{prompt} -> {completion}:")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    expected = predictor.predict(["system: Be brief.\n\nuser: Hi -> yes:"]).tolist()
    assert reward([chat], ["yes"]) == pytest.approx(expected, abs=1e-6)


def test_columns_may_have_the_names_of_training(tiny_llama, tokenizer):
    judge = RegressionPredictor(tiny_llama, tokenizer, [1, 2], prompt_template="Task: {task} Reply: {reply} Score:")
    found = judge.as_reward(prompt_column="task", completion_column="reply")(["a"], ["b"])
    assert found == pytest.approx(judge.predict(["Task: a Reply: b Score:"]).tolist(), abs=1e-6)


def test_mistakes_are_told(predictor):
    with pytest.raises(ValueError, match="How a completion is put into a prompt is not known"):
        predictor.as_reward()
    with pytest.raises(ValueError, match="every completion would have the same reward"):
        predictor.as_reward("Q: {prompt} Score:")
    with pytest.raises(ValueError, match="hint"):
        predictor.as_reward(TEMPLATE)(["one?"], ["1"])


def test_the_example_trains_a_policy(tiny_llama, tiny_gemma2, tokenizer, rows, tmp_path):
    """By GRPO, with a folder as its reward."""
    for name, model in (("base", tiny_llama), ("policy", tiny_gemma2)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    make(str(tmp_path / "base"), tokenizer, tmp_path / "judge", rows, peft_config=lora()).save_model()
    trainer = train(
        str(tmp_path / "judge"),
        str(tmp_path / "policy"),
        Dataset.from_list([{"prompt": "one?", "hint": "a"}, {"prompt": "two?", "hint": "b"}]),
        str(tmp_path / "trained"),
        template=TEMPLATE,
        algorithm="grpo",
        max_steps=1,
        num_generations=2,
        per_device_train_batch_size=2,
        max_completion_length=3,
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",
    )
    logged = [log for log in trainer.state.log_history if "rewards/raft_reward/mean" in log]
    assert 0 < logged[0]["rewards/raft_reward/mean"] < 4
    assert (tmp_path / "trained" / "model.safetensors").is_file()
