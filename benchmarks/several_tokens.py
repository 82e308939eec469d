"""What numbers of several tokens cost, beside a grid of single tokens.

    python benchmarks/several_tokens.py
    python benchmarks/several_tokens.py --model google/gemma-2-2b --device cuda --batch_size 16

The figures are ratios to the single-token grid in the same turn, the median and the range between the quartiles.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from common.side_by_side import device_name, make_batches, ratios, time_in_turn, write
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from raft_peft import NumberGrid
from raft_peft.forward.final_position import read_final_position
from raft_peft.forward.layouts import path_sequences
from raft_peft.grid.trie import Trie
from raft_peft.methods import MethodSettings
from raft_peft.methods.readout import Readout
from raft_peft.tasks.stsb import PROMPT

GRIDS = {
    "0 to 5": NumberGrid(range(6)),
    "0.0 to 5.0 in tenths": NumberGrid.spaced(0, 5, 0.1),
    "0 to 100": NumberGrid(range(101)),
}
SENTENCE = "A man in a red shirt is playing the guitar in front of a small crowd"


@dataclass
class Arguments:
    model: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Name or folder of a language model."}
    )
    device: str = field(default="cpu", metadata={"help": "Where to run."})
    batch_size: int = field(default=8, metadata={"help": "Prompts in a batch."})
    turns: int = field(default=5, metadata={"help": "How often each way is timed."})
    one_by_one: bool = field(
        default=False, metadata={"help": "Whether to time scoring number by number, too, which takes minutes a turn."}
    )
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def main(args: Arguments) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device)
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    prompts = [
        {"prompt": PROMPT.format(sentence1=SENTENCE, sentence2=f"{SENTENCE}, number {row}")}
        for row in range(args.batch_size)
    ]
    batches = {}
    for name, grid in GRIDS.items():
        (batch,) = make_batches(tokenizer, grid, prompts, args.batch_size)
        batches[name] = {key: tensor.to(args.device) for key, tensor in batch.items()}
    readouts = {
        name: Readout(model, tokenizer, grid, MethodSettings(renormalize=True), grid_token_ids=None)
        for name, grid in GRIDS.items()
    }
    ways: dict[str, Callable[[], torch.Tensor]] = {
        f"{name}, {step}": partial(
            forward if step == "forward" else forward_and_backward, readouts[name], model, batches[name]
        )
        for step in ("forward", "forward and backward")
        for name in GRIDS
    }
    for name in list(GRIDS)[1:]:
        ways[f"{name}, forward, a row for each path"] = partial(paths, model, batches[name])
    if args.one_by_one:
        for name in list(GRIDS)[1:]:
            ways[f"{name}, forward, number by number"] = partial(number_by_number, model, batches[name])

    seconds = time_in_turn(ways, args.turns, args.device)
    length = batches["0 to 5"]["input_ids"].shape[1]
    device = device_name(args.device)
    print(f"{args.model}, float32, LoRA, batch {args.batch_size} x {length} tokens, {device}\n")
    print("| grid | numbers | inner nodes | pass | cost | quartiles |\n|---|---|---|---|---|---|")
    figures = []
    for name, times in seconds.items():
        grid, _, step = name.partition(", ")
        base = seconds["0 to 5, " + ("forward" if "backward" not in step else step)]
        low, middle, high = ratios(times, base)
        trie = Trie.in_batch(batches[grid])
        nodes = 0 if trie is None else trie.size
        figures.append({"grid": grid, "pass": step, "ratio": middle, "quartiles": [low, high], "seconds": times})
        print(f"| {grid} | {len(GRIDS[grid])} | {nodes} | {step} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    write(args, {"device": device, "figures": figures})


@torch.no_grad()
def forward(readout: Readout, model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return readout.expectation(readout.read_head(model, batch).output)


def forward_and_backward(readout: Readout, model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    loss = (readout.expectation(readout.read_head(model, batch).output) - 3).square().mean()
    loss.backward()
    model.zero_grad()
    return loss


@torch.no_grad()
def paths(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    trie = Trie.in_batch(batch)
    final = read_final_position(model, batch["input_ids"], batch["attention_mask"], trie, layout=path_sequences)
    return final.trie.log_probs


@torch.no_grad()
def number_by_number(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each number behind the prompt in a forward pass of its own, as one would write it down first."""
    scores = []
    for number in batch["trie_token_ids"].unbind(1):
        number = number[:, : int((number[0] >= 0).sum())]
        ids = torch.cat([batch["input_ids"], number], dim=1)
        mask = torch.cat([batch["attention_mask"], torch.ones_like(number)], dim=1)
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=number.shape[1] + 1).logits[:, :-1]
        scores.append(logits.log_softmax(-1).gather(-1, number.unsqueeze(-1)).sum((1, 2)))
    return torch.stack(scores, dim=1)


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
