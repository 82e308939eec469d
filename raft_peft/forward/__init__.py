'''One forward pass of a language model, read at the few positions where a number begins.

The idea of the library, whole and in plain torch, where every number is one token:

```python
def raft(model, tokenizer, prompts, grid, targets):
    """The predictions (RAIL, the paper's eq. 5) and their loss (RAFT, its eq. 10)."""
    sentences = [f"{prompt} {grid[0]}" for prompt in prompts]
    batch = tokenizer(sentences, padding=True, padding_side="left", return_tensors="pt")
    # Each prompt ends exactly where its number would begin.
    input_ids, mask = batch["input_ids"][:, :-1], batch["attention_mask"][:, :-1]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    outputs = model(input_ids=input_ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
    tokens = [tokenizer(f"{prompts[0]} {number}")["input_ids"][-1] for number in grid]
    # The probabilities are over the whole vocabulary: what is not on the grid counts as 0.
    probabilities = outputs.logits[:, -1].float().softmax(-1)[:, tokens]
    predictions = probabilities @ torch.tensor(grid, dtype=torch.float32)
    return predictions, (targets - predictions).square().mean()
```

The rest of this package makes it exact for any tokenizer, numbers of several tokens, any padding, and few positions of
a large model. `model.run` is all that is asked of a model, and `final_position.read_final_position` what it is asked
for.
'''
