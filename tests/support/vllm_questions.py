"""Writes what vLLM asks a model and reads from it, as `tests/data/questions/test_vllm.py` compares it with ours.

Run it where vLLM is installed: `PYTHONPATH=tests:. python tests/support/vllm_questions.py`.
"""

import copy
import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace

from support.real_tokenizers import real_tokenizer

FIXTURE = Path(__file__).parents[1] / "data" / "questions" / "vllm_questions.json"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Where a tokenizer has no chat template of its own.
TEMPLATES = {"SmolLM2": None, "Gemma 3": GEMMA, "Qwen": CHATML}
STATES = [
    "My payouts have been failing for 3 days.",
    {"from": "zoë@example.com", "amounts": [3, 0.5], "paid": False, "note": None},
    [{"role": "user", "content": "Was ist los?"}, {"role": "assistant", "content": "Alles gut."}],
]
QUESTIONS = {
    "urgency": {"type": "score", "instructions": "How urgent is it?", "criteria": ["can wait", "this week", "today"]},
    "many": {"type": "score", "instructions": "", "criteria": [f"level {n}" for n in range(10)]},
    "refund": {"type": "noul", "instructions": "Is a refund asked for?"},
    "angry": {"type": "noul", "instructions": "Angry?", "criteria": {"true": "insults", "false": "polite {words}"}},
    "team": {
        "type": "choice",
        "instructions": "Which team?\nOne only.",
        "criteria": {"billing": "payments", "other": None},
    },
}


def tokenizer_of(name: str):
    """A tokenizer of the fixture, with a chat template."""
    # A copy, since other tests have the same.
    tokenizer = copy.copy(real_tokenizer(name))
    if TEMPLATES[name] is not None:
        tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def vllm_reads(name: str) -> list[dict]:
    """What vLLM sends to a model for each state and question, and the tokens that it reads."""
    from vllm.entrypoints.openai.decisions.question_types import build_question
    from vllm.entrypoints.openai.decisions.strategies import (
        NextTokenStrategy,
        ReadContext,
        ReadPromptRequest,
        state_text,
    )

    tokenizer = tokenizer_of(name)
    engine = SimpleNamespace(model_config=SimpleNamespace(supports_multimodal_inputs=False, max_model_len=4096))
    renderer = SimpleNamespace(renderer=SimpleNamespace(get_tokenizer=lambda: tokenizer))
    strategy = NextTokenStrategy(ReadContext(engine, renderer, None, "auto", {}))
    request = ReadPromptRequest()
    options = request.build_chat_params(None, "auto").chat_template_kwargs
    special = request.build_tok_params(engine.model_config).add_special_tokens
    reads = []
    for state in STATES:
        for key, raw in QUESTIONS.items():
            question = build_question(key, raw["type"], raw["instructions"], raw.get("criteria"), 26)
            content = strategy._content(state_text(state), question)
            text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, **options)
            reads.append(
                {
                    "content": content,
                    "prompt_ids": tokenizer.encode(text, add_special_tokens=special),
                    "labels": list(question.labels),
                    "label_groups": strategy._label_groups(question),
                }
            )
    return reads


if __name__ == "__main__":
    version = importlib.metadata.version("vllm")
    source = (
        f"vLLM {version}: build_question of vllm/entrypoints/openai/decisions/question_types.py; state_text, "
        "NextTokenStrategy and ReadPromptRequest of strategies.py beside it"
    )
    reads = {name: vllm_reads(name) for name in TEMPLATES}
    FIXTURE.write_text(json.dumps({"source": source, "reads": reads}, ensure_ascii=False) + "\n", encoding="utf-8")
