"""All benchmarks, one after another, and their report: what `make bench` runs.

    python benchmarks/report.py --output docs/performance.md

Each benchmark runs as a command of its own, so that none sees what another left behind. The report is written as
Markdown, as JSON beside it, and as a bar chart and curves in images/; `--only` runs some again and keeps the others'
figures.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from transformers import HfArgumentParser

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BENCHMARKS = Path(__file__).parent
SMOLLM2, GEMMA3 = "HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-3-270m"
INTRODUCTION = """\
# Performance

This page shows what training and prediction cost beside the alternatives. `make bench` measures it again and writes
this page; one benchmark alone is one command:

```sh
python benchmarks/padding.py --model HuggingFaceTB/SmolLM2-135M-Instruct
```

- Every figure is a ratio between two ways. They ran in turn in one process, so that a slow moment of the machine
  affects both. The tables give the median and the range between the quartiles.
- Memory was measured in a separate process for each way.
- On Linux, the C library keeps freed memory while times are taken. Otherwise a way would wait for pages that another
  way had returned to the system; with the logits of all positions these are gigabytes at each step.

What follows from the figures, and memory on a GPU: [speed_and_memory.md](speed_and_memory.md).
"""


@dataclass(frozen=True)
class Benchmark:
    """A script, its arguments, and the text above its table."""

    title: str
    script: str
    arguments: tuple[str, ...]
    about: str


NEAR_THE_FLOOR = ("bare backbone", "RAFT", "RAFT, padding_free", "sequence-classification head")
SUITE = {
    "step_8": Benchmark(
        "A training step at a vocabulary of 262,144",
        "training.py",
        ("--model", GEMMA3, "--batch_size", "8", "--turns", "21", "--ways", *NEAR_THE_FLOOR),
        "RAFT needs one row of logits for each example. The other ways are the same step without any output (`bare "
        "backbone`, the lower limit), and with a head on the last hidden state. All use the same tokens. Memory is "
        "that of a step, without the model.",
    ),
    "step_16": Benchmark(
        "The same with 16 prompts",
        "training.py",
        ("--model", GEMMA3, "--batch_size", "16", "--turns", "15", "--ways", *NEAR_THE_FLOOR),
        "",
    ),
    "step_float32": Benchmark(
        "The same in float32",
        "training.py",
        (
            *("--model", GEMMA3, "--batch_size", "8", "--bf16", "False", "--attn_implementation", "sdpa"),
            *("--turns", "11", "--ways", *NEAR_THE_FLOOR),
        ),
        "This is the default on a CPU without instructions for bf16. This CPU has them, but they were not used here.",
    ),
    "ways": Benchmark(
        "Beside the logits of all positions, and TRL's SFT",
        "training.py",
        ("--model", GEMMA3, "--batch_size", "8"),
        "Ways that take gigabytes slow down the ways that run after them in the same process. For small differences, "
        "use the tables above.",
    ),
    "padding": Benchmark(
        "Rows of different length",
        "padding.py",
        ("--model", SMOLLM2),
        "Time for each token of the prompts, relative to random batches with padding.",
    ),
    "judge": Benchmark(
        "Prompts of a judge",
        "padding.py",
        (
            *("--model", SMOLLM2, "--kind", "judge", "--attn_implementation", "sdpa"),
            *("--batches", "1", "--turns", "3", "--batch_size", "32", "--gradient_checkpointing"),
        ),
        "The same for prompts that begin with a rubric of about 500 tokens, followed by answers of about 150. "
        "Gradient checkpointing (TRL's default) is on, so that many of them fit in a batch.",
    ),
    "inference": Benchmark(
        "Prediction",
        "inference.py",
        ("--model", SMOLLM2),
        "`RegressionPredictor` sorts prompts by length, and runs their common beginning only once.",
    ),
    "cpu": Benchmark(
        "Precision and attention on the CPU",
        "cpu_precision.py",
        ("--model", SMOLLM2),
        "The defaults on a CPU with bf16 instructions were chosen by these figures: bf16 autocast on float32 weights, "
        "and eager attention.",
    ),
    "options": Benchmark(
        "Options of training",
        "training_options.py",
        ("--model", SMOLLM2),
        "Each option is relative to the step without it.",
    ),
    "numbers": Benchmark(
        "Numbers of several tokens",
        "several_tokens.py",
        ("--model", SMOLLM2),
        "The cost is relative to a grid of single tokens.",
    ),
    "growth": Benchmark(
        "Growth",
        "growth.py",
        ("--model", SMOLLM2),
        "Time relative to the first point, and the exponent of the power law that fits best: 1 is linear, 0 is no "
        "growth. For the vocabulary, the model is six random layers of the same size.",
    ),
}


@dataclass
class Arguments:
    output: str = field(default="docs/performance.md", metadata={"help": "Where the report is written."})
    models: str | None = field(
        default=None, metadata={"help": "A folder that holds the models by their names. By default the Hub."}
    )
    only: list[str] | None = field(default=None, metadata={"help": "Some benchmarks alone.", "choices": list(SUITE)})


def main(args: Arguments) -> None:
    output = Path(args.output)
    (output.parent / "images").mkdir(parents=True, exist_ok=True)
    figures_path = output.with_suffix(".json")
    figures: dict[str, Any] = json.loads(figures_path.read_text()) if figures_path.is_file() else {}
    for name, benchmark in SUITE.items():
        if args.only is not None and name not in args.only:
            continue
        print(f"{benchmark.title} ...", flush=True)
        figures[name] = run(benchmark, args.models)
        figures_path.write_text(json.dumps(figures, indent=1) + "\n")
    for name, (_, picture, draw) in PICTURES.items():
        if name in figures:
            draw(figures[name], output.parent / picture)
    output.write_text(report(figures))
    print(f"Written: {output}, {figures_path}, and what is drawn of them")


def run(benchmark: Benchmark, models: str | None) -> dict[str, Any]:
    """Run a benchmark; the contents of its JSON file and its printed table, which name the model, not its folder."""
    name = benchmark.arguments[benchmark.arguments.index("--model") + 1]
    model = name if models is None else str(Path(models) / name)
    arguments = [model if argument == name else argument for argument in benchmark.arguments]
    with tempfile.TemporaryDirectory() as folder:
        figures_path = Path(folder) / "figures.json"
        command = [sys.executable, str(BENCHMARKS / benchmark.script), *arguments, "--output", str(figures_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)} failed with {done.returncode}:\n{done.stderr[-3000:]}")
        figures = json.loads(figures_path.read_text())
    figures["settings"]["model"] = name
    return figures | {"printed": done.stdout.replace(model, name)}


def report(figures: dict[str, Any]) -> str:
    parts = [INTRODUCTION]
    versions = next(iter(figures.values()))["versions"]
    parts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n")
    for name, benchmark in SUITE.items():
        if name in figures:
            lines = figures[name]["printed"].splitlines()
            start = next(index for index, line in enumerate(lines) if line.startswith("|"))
            said = " ".join(line for line in lines[:start] if line and not line.startswith("{"))
            parts += [f"## {benchmark.title}\n", benchmark.about + "\n" if benchmark.about else ""]
            command = f"`python benchmarks/{benchmark.script} {shlex.join(benchmark.arguments)}`"
            parts += [f"{command}: {said}\n", "\n".join(lines[start:]) + "\n"]
            if name in PICTURES:
                title, picture, _ = PICTURES[name]
                parts.append(f"![{title}]({picture})\n")
    return "\n".join(part for part in parts if part)


def draw_ways(ways: dict[str, Any], path: Path) -> None:
    """Time and memory of each way of a training step, as bars."""
    found, settings = ways["figures"], ways["settings"]
    places = range(len(found))[::-1]
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for panel, key, label in zip(panels, ("time", "memory"), ("time", "memory of a step"), strict=True):
        values = [one[key] for one in found]
        colours = [
            "#1f77b4" if one["way"].startswith("RAFT") and "full" not in one["way"] else "#b0b0b0" for one in found
        ]
        panel.barh(places, values, color=colours)
        for place, value in zip(places, values, strict=True):
            panel.text(value, place, f" {value:.2f}", va="center")
        panel.axvline(1, color="black", linewidth=0.8, linestyle=":")
        panel.set_xlabel(f"{label} / bare backbone")
        panel.set_xlim(0, 1.15 * max(values))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(places, [one["way"] for one in found])
    title = f"{settings['model']}, LoRA, batch {settings['batch_size']}, {ways['device']}"
    _save(figure, title, path)


def draw_growth(growth: dict[str, Any], path: Path) -> None:
    """The time of a step at each batch, length, vocabulary and grid, as curves."""
    figure, panels = plt.subplots(1, 4, figsize=(10, 3), sharey=True)
    for panel, one in zip(panels, growth["figures"], strict=True):
        times = [seconds / one["seconds"][0] for seconds in one["seconds"]]
        panel.loglog(one["points"], times, marker="o", color="#1f77b4")
        linear = [point / one["points"][0] for point in one["points"]]
        panel.loglog(one["points"], linear, color="black", linewidth=0.8, linestyle=":")
        panel.set_title(f"exponent {one['exponent']:.2f}", fontsize=9)
        panel.set_xlabel(one["quantity"])
        panel.set_xticks(one["points"], [f"{point:,}" for point in one["points"]], fontsize=7)
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    ticks = [1, 2, 4, 8, 16]
    panels[0].set_yticks(ticks, [str(tick) for tick in ticks])
    panels[0].set_ylim(0.9, ticks[-1])
    panels[0].set_ylabel("time / the first point")
    _save(figure, f"{growth['settings']['model']}, LoRA, {growth['device']}; dotted: linear growth", path)


def _save(figure: plt.Figure, title: str, path: Path) -> None:
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


# By benchmark: the title of its picture, the path beside the report, and the function that draws it.
PICTURES = {
    "ways": ("Time and memory of a training step", Path("images", "performance.png"), draw_ways),
    "growth": ("Time of a step as it grows", Path("images", "performance_growth.png"), draw_growth),
}


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
