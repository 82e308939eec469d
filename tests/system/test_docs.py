"""The documentation: its code runs as it is written, its links lead somewhere, and it says what the source says."""

import ast
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import raft_peft
from raft_peft.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
PYTHON = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^( *)```.*?^\1```", flags=re.DOTALL | re.MULTILINE)

RUN_BELOW = {
    "README.md",
    "docs/dataset_formats.md",
    "docs/decisions.md",
    "docs/distributed_training.md",
    "docs/grids.md",
    "docs/methods.md",
    "docs/migrating.md",
    "docs/preferences.md",
    "docs/questions.md",
    "docs/quickstart.md",
    "docs/reasons.md",
    "docs/troubleshooting.md",
    "docs/uncertainty.md",
}
NOT_RUN = {
    "docs/architecture.md": "tests/forward/test_idea.py runs it, and compares it with the library",
    "docs/compare.md": "a comparison takes minutes; tests/compare runs small ones",
    "docs/serving.md": "needs a server; tests/prediction/remote/test_remote_predictor.py has one",
    "docs/sharing.md": "needs the Hub; tests/prediction/test_sharing.py has a server like it",
    "docs/speed_and_memory.md": "names a model of 27B parameters",
}


@pytest.fixture(scope="module")
def small(smollm2, tmp_path_factory):
    """A folder with SmolLM2's architecture and tokenizer, but few weights, which are random."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.from_pretrained(smollm2, num_key_value_heads=2, **sizes)
    config.head_dim = 16
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


def run_code(page, model, folder, monkeypatch, **smaller):
    """Run all Python blocks of a page one after the other, and give the names they leave.

    `model` is the folder of the model in place of the one that the page names. `smaller` maps what stands in the code
    to what is run in its place, so that it takes seconds.
    """
    code = "\n".join(PYTHON.findall((ROOT / page).read_text(encoding="utf-8")))
    for written, run in {"HuggingFaceTB/SmolLM2-135M-Instruct": str(model), **smaller}.items():
        assert written in code
        code = code.replace(written, run)
    monkeypatch.chdir(folder)
    names: dict = {"__name__": page}
    exec(compile(code, page, "exec"), names)
    return names


def test_every_page_with_code_is_run():
    with_code = {str(page.relative_to(ROOT)) for page in PAGES if PYTHON.search(page.read_text(encoding="utf-8"))}
    assert with_code == RUN_BELOW | NOT_RUN.keys()


def test_readme(smollm2, tmp_path, monkeypatch):
    names = run_code("README.md", smollm2, tmp_path, monkeypatch)
    assert names["stars"].shape == (2,)
    assert np.isfinite(names["stars"]).all()
    assert names["distribution"].probs.shape == (2, 5)
    assert (tmp_path / "stars-raft" / "raft_config.json").is_file()


def test_methods(small, tmp_path, monkeypatch):
    smaller = {"LastTokenHead(576)": "LastTokenHead(64)"}
    names = run_code("docs/methods.md", small, tmp_path, monkeypatch, **smaller)
    distribution = names["GridDistribution"](torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0.0, 2.0]))
    loss = names["VariancePenalised"]()(distribution, torch.tensor([2.0]))
    assert loss.item() == pytest.approx(1.1)  # mean 1, variance 1: (2 - 1)^2 + 0.1 x 1
    assert (tmp_path / "stars-last-token" / "regression_head.safetensors").is_file()


def test_grids(smollm2, tmp_path, monkeypatch):
    names = run_code("docs/grids.md", smollm2, tmp_path, monkeypatch)
    assert len(names["grid"]) == len(names["tenths"]) == 51
    assert names["resolved"].token_ids == ((33,), (37,), (33, 32))
    # The sign or the space, and the digit.
    assert [len(ids) for ids in names["signed"].token_ids] == [2] * 9
    assert (tmp_path / "similarity-tokens" / "adapter_model.safetensors").stat().st_size < 50_000_000


def test_quickstart(small, tmp_path, monkeypatch):
    smaller = {
        "load_synthetic(480": "load_synthetic(2",
        "load_synthetic(60": "load_synthetic(3",
        "num_train_epochs=2": "max_steps=1",
    }
    names = run_code("docs/quickstart.md", small, tmp_path, monkeypatch, **smaller)
    assert names["numbers"].shape == (3,)
    assert names["distribution"].probs.shape == (3, 10)


def test_dataset_formats(smollm2, tmp_path, monkeypatch, capsys):
    names = run_code("docs/dataset_formats.md", smollm2, tmp_path, monkeypatch)
    assert names["renamed"]["prompt"][0] == "Review: It broke on day two. Stars:"
    lines = capsys.readouterr().out.splitlines()
    ends = [line.partition(" ")[2] for line in lines if re.match(r"[01]\.\d+ ", line)]
    assert len(ends) == 5
    assert ends[0] == ends[1] == ends[3] == ends[4]  # one prompt: a text, rated, with a completion, and tokenized
    assert ends[2].endswith("<|im_start|>assistant")  # the chat ends where the answer begins


def test_reasons(small, tmp_path, monkeypatch):
    smaller = {"num_train_epochs=3": "max_steps=1", "max_reasoning_tokens=32": "max_reasoning_tokens=2"}
    names = run_code("docs/reasons.md", small, tmp_path, monkeypatch, **smaller)
    assert np.allclose(names["scores"], names["found"].predictions, atol=1e-5)
    assert names["found"].unfinished.tolist() == [5, 5]
    assert len((tmp_path / "own.jsonl").read_text().splitlines()) == 2


def test_questions(small, tmp_path, monkeypatch, capsys):
    smaller = {"num_train_epochs=3": "max_steps=1"}
    names = run_code("docs/questions.md", small, tmp_path, monkeypatch, **smaller)
    assert names["answers"].keys() == {"urgency", "refund", "team", "days"}
    assert names["many"][0].keys() == names["answers"].keys()
    assert 0 <= names["likely"]["urgency"].low <= names["likely"]["urgency"].high <= 2
    assert set(names["likely"]["team"].options) <= {"billing", "technical", "other"}
    assert sum(names["probable"].values()) == pytest.approx(1)
    assert names["dataset"].column_names == ["state", "questions", "targets"]
    assert len(names["emotions"]) == 2
    shown = [line[4:] for line in (ROOT / "docs/questions.md").read_text(encoding="utf-8").splitlines()]
    message = names["template"].content(names["template"].state_text(names["row"].state), names["row"].questions[2])
    assert set(message.splitlines()) <= set(shown)
    assert "(((10407,), (10539,)), ((4607,), (5230,)))" in capsys.readouterr().out


def test_preferences(small, tmp_path, monkeypatch):
    names = run_code(
        "docs/preferences.md", small, tmp_path, monkeypatch, **{"num_train_epochs=3": 'max_steps=1, report_to="none"'}
    )
    assert names["both"]["label"] == [4.5, None, None]
    assert names["scores"][0] == pytest.approx(names["rewards"][0], abs=1e-5)


def test_migrating(small, tmp_path, monkeypatch):
    smaller = {'report_to="none"': 'report_to="none", max_steps=1'}
    names = run_code("docs/migrating.md", small, tmp_path, monkeypatch, **smaller)
    assert names["scores"].shape == (4,)
    assert (names["scores"] > 0).all()
    assert (names["scores"] < 5).all()


def test_decisions(smollm2, tmp_path, monkeypatch):
    names = run_code("docs/decisions.md", smollm2, tmp_path, monkeypatch)
    numbers = [names[rule].item() for rule in ("mean", "renormalized", "median", "upper")]
    assert numbers == pytest.approx([1.7, 2.125, 1, 5])
    others = [names[name].item() for name in ("cautious", "low", "high", "at_least")]
    assert others == pytest.approx([0.434, 1, 2, 0.375], abs=1e-3)


def test_distributed_training(small, tmp_path, monkeypatch):
    smaller = {"num_train_epochs=3, save_steps=50": "max_steps=1, save_steps=1"}
    names = run_code("docs/distributed_training.md", small, tmp_path, monkeypatch, **smaller)
    assert names["trainer"].state.global_step == 1
    assert (tmp_path / "stars-long" / "checkpoint-1" / "trainer_state.json").is_file()


def test_troubleshooting(small, tmp_path, monkeypatch):
    names = run_code("docs/troubleshooting.md", small, tmp_path, monkeypatch)
    assert 0 < names["distribution"].mass.item() <= 1


def test_uncertainty(smollm2, tmp_path, monkeypatch):
    names = run_code("docs/uncertainty.md", smollm2, tmp_path, monkeypatch)
    assert names["low"] <= names["predictions"] <= names["high"]
    assert names["grouped"].low <= names["grouped"].high
    assert 1 <= names["mapped"].item() <= 5
    assert names["calibrated"].mass.item() == pytest.approx(1, abs=1e-5)


@cache
def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"`[^`\n]+`", "", FENCED.sub("", page.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(linked), f"{target} is no heading"


def test_every_page_is_in_the_navigation():
    def pages(entry):
        if isinstance(entry, str):
            return {entry}
        parts = entry.values() if isinstance(entry, dict) else entry
        return set().union(*map(pages, parts))

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert pages(navigation) == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_every_public_name_is_in_the_reference():
    reference = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"^::: raft_peft\.(\w+)$", reference, flags=re.MULTILINE))
    assert set(raft_peft.__all__) <= documented


def test_every_method_is_described_with_its_source():
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    table, equations = text.partition("## Equations")[::2]
    rows = {
        cells[1].strip(" `"): cells for cells in (line.split("|") for line in table.splitlines()) if len(cells) > 5
    }
    for name, method in METHODS.items():
        assert rows[name][5].strip() == method.source
        assert f"`{name}`" in equations
        for setting in method.takes:
            assert f"`{setting}`" in text, f"{setting} of {name}"


def one_line(text):
    return re.sub(r"\s+", " ", text)


@cache
def texts_of_the_source():
    """The texts of the package's source, each between two values that are put into it, the longest first."""
    texts = set()
    for path in (ROOT / "raft_peft").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(one_line(node.value).strip())
    return sorted((text for text in texts if len(text) >= 6), key=len, reverse=True)


QUOTED = re.findall(r"^```text\n(.*?)^```", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("message", QUOTED, ids=lambda message: one_line(message)[:40])
def test_quoted_messages_are_those_of_the_source(message):
    """But for the values in it, a message is made of texts of the source."""
    left = one_line(message).strip()
    for text in texts_of_the_source():
        left = left.replace(text, "\n")
    of_values = max(len(part.split()) for part in left.split("\n"))
    assert of_values <= 4, f"Not in the source: {left}"
