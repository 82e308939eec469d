"""Two folders of one base model, one of numbers and one of typed questions, behind a server on a port of its own."""

import pytest
from conftest import make_tiny_llama
from support.serving import TICKETS, Served
from support.training import config, lora, make
from transformers import AutoTokenizer

from raft_peft import RegressionAwareTrainer, RegressionPredictor
from raft_peft.data.questions.dataset import as_question_dataset
from raft_peft.serving.app import create_app
from raft_peft.serving.models import open_models


@pytest.fixture(scope="session")
def folders(smollm2, tmp_path_factory):
    """The trained folders, by the names of their models."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    base = folder / "base"
    make_tiny_llama(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows = [{"prompt": f"Review: {word}. Stars:", "label": label} for word, label in (("bad", 1.0), ("good", 4.0))]
    stars = make(str(base), tokenizer, folder / "stars", rows, options={"max_steps": 2}, peft_config=lora())
    stars.train()
    stars.save_model()
    targets = {"urgency": 2, "refund": True, "team": "billing", "days": 1}
    tickets = [{"state": text, "questions": TICKETS, "targets": targets} for text in ("Refund me!", "It broke.")]
    asked = RegressionAwareTrainer(
        str(base),
        config(folder / "tickets", max_steps=2, per_device_train_batch_size=2),
        train_dataset=as_question_dataset(tickets, "train"),
        processing_class=tokenizer,
        peft_config=lora(),
    )
    asked.train()
    asked.save_model()
    return {"stars": str(folder / "stars"), "tickets": str(folder / "tickets")}


@pytest.fixture(scope="session")
def alone(folders):
    """The folders opened each by itself."""
    return {name: RegressionPredictor.from_pretrained(folder) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def models(folders):
    return open_models(folders)


@pytest.fixture(scope="session")
def served(models):
    one = Served(create_app(models))
    yield one
    one.stop()
