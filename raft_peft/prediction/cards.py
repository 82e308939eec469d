"""A saved model card, adapted: to a model that was merged from an adapter, or to the model's name on the Hub."""

from __future__ import annotations

import re

from huggingface_hub import ModelCard

# How a card opens the model that it belongs to.
_OPENED = re.compile(r'(RegressionPredictor\.from_pretrained\()"[^"\n]*"')


def merged_card(text: str, name: str) -> str:
    """The card of a merged model.

    Args:
        text: the card of its adapter, written by `RegressionAwareTrainer` or changed by its user.
        name: of the merged model, and of its folder.
    """
    card = ModelCard(text, ignore_metadata_errors=True)
    former = card.data.get("model_name")
    card.data["model_name"] = name
    card.text = _opened_by(card.text, name)
    if former:
        title = f"# {name}\n\nThe adapter {former}, merged into its base model.\n"
        card.text = re.sub(rf"^# {re.escape(former)}$\n", lambda _: title, card.text, count=1, flags=re.MULTILINE)
    return str(card)


def card_on_hub(text: str, repository: str, base_model: str | None) -> str:
    """A card whose model is opened by its name on the Hub.

    Args:
        text: the card in the model's folder.
        repository: the name of the model on the Hub.
        base_model: that of the model it was trained from; None where it has none there.
    """
    card = ModelCard(text, ignore_metadata_errors=True)
    card.data["base_model"] = base_model
    card.text = _opened_by(card.text, repository)
    return str(card)


def _opened_by(text: str, name: str) -> str:
    return _OPENED.sub(lambda found: f'{found[1]}"{name}"', text)
