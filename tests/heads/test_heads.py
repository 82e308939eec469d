"""What every head of the package fulfils. A new head is reached unasked; it needs an entry in MAKERS."""

import importlib
import math
import pkgutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from raft_peft import GridDistribution, decisions, heads
from raft_peft.forward.final_position import FinalPosition
from raft_peft.heads import Head, HeadSetup, UpperValueHead
from raft_peft.losses import LogLoss

VALUES = (4.0, 0.0, 2.5)
BATCH, LENGTH, VOCABULARY, HIDDEN = 4, 6, 11, 8
SETUP = HeadSetup(values=VALUES, grid_token_ids=((3,), (7,), (5,)), vocab_size=VOCABULARY, hidden_size=HIDDEN)
GRID_TOKEN_IDS = torch.tensor([[3, 7, 5], [3, 7, 5], [3, 8, 5], [1, 7, 5]])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# class -> how to make it, in each variant
MAKERS = {
    "GridHead": [lambda: heads.GridHead(VALUES)],
    "LearnableGridHead": [
        lambda: heads.LearnableGridHead(SETUP),
        lambda: heads.LearnableGridHead(SETUP, whole_vocabulary=True),
    ],
    "LogitsMLPHead": [lambda: heads.LogitsMLPHead(SETUP, width=5)],
    "PooledHead": [
        lambda: heads.PooledHead(SETUP, pooling="mean"),
        lambda: heads.PooledHead(SETUP, pooling="min"),
        lambda: heads.PooledHead(SETUP, pooling="max"),
    ],
    "ProbabilityProjectionHead": [lambda: heads.ProbabilityProjectionHead(SETUP)],
    "SpecialTokenHead": [lambda: heads.SpecialTokenHead(SETUP, 2)],
    "UpperValueHead": [lambda: heads.UpperValueHead(VALUES)],
}


def package_heads():
    """The names of all heads defined in the files of the package."""
    names = set()
    for module in pkgutil.iter_modules(heads.__path__):
        loaded = importlib.import_module(f"raft_peft.heads.{module.name}")
        names |= {
            name
            for name, item in vars(loaded).items()
            if isinstance(item, type)
            and issubclass(item, Head)
            and item is not Head
            and item.__module__ == loaded.__name__
        }
    return sorted(names)


def test_every_head_is_exported_and_has_an_entry():
    assert package_heads() == sorted({*heads.__all__} - {"FinalPosition", "Head", "HeadSetup"})
    missing = {*package_heads()} - {*MAKERS}
    assert not missing, f"Add an entry to MAKERS for {sorted(missing)}."


@pytest.fixture(params=[(name, index) for name in MAKERS for index in range(len(MAKERS[name]))], ids=str)
def make(request):
    """Makes the head, away from its initial values, where a wrong weight may hide."""
    name, index = request.param

    def make(seed=0):
        torch.manual_seed(seed)
        head = MAKERS[name][index]()
        with torch.no_grad():
            for parameter in head.parameters():
                parameter += 0.3 * torch.randn(parameter.shape)
        return head

    return make


def final_position(dtype=torch.float32, *, requires_grad=False):
    """Rows of 6, 1, 3 and 5 tokens, padded on the left."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(LENGTH) >= LENGTH - torch.tensor([[6], [1], [3], [5]])).long()
    logits, states = (
        (2 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_(requires_grad)
        for shape in ((BATCH, VOCABULARY), (BATCH, LENGTH, HIDDEN))
    )
    return FinalPosition(logits, mask, states, outputs=None)


def number(output):
    return decisions.mean(output) if isinstance(output, GridDistribution) else output


def parts(output):
    return (output.log_probs, output.values.clone()) if isinstance(output, GridDistribution) else (output,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_distribution_or_a_number_in_float32(make, dtype):
    output = make()(final_position(dtype), GRID_TOKEN_IDS)
    if isinstance(output, GridDistribution):
        assert output.log_probs.shape == (BATCH, len(output.values))
        assert (output.mass <= 1 + 1e-6).all() and (output.mass > 0).all()
    else:
        assert output.shape == (BATCH,)
    assert {part.dtype for part in parts(output)} == {torch.float32}
    assert all(part.isfinite().all() for part in parts(output))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_precision_is_computed_in_float32(make, dtype):
    """What bf16 can write comes out as from the same numbers in float32, digit for digit."""
    head, half = make(), final_position(dtype)
    exact = FinalPosition(half.logits.float(), half.attention_mask, half.hidden_states.float(), None)
    with torch.no_grad():
        torch.testing.assert_close(number(head(half, GRID_TOKEN_IDS)), number(head(exact, GRID_TOKEN_IDS)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parameters_are_float32_and_all_are_trained(make, dtype):
    head = make()
    number(head(final_position(dtype, requires_grad=True), GRID_TOKEN_IDS)).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).all(), name


def test_the_model_below_is_trained_row_by_row(make):
    head, final = make(), final_position(requires_grad=True)
    read = final.hidden_states if head.reads_hidden_states else final.logits
    prediction = number(head(final, GRID_TOKEN_IDS))
    for row in range(BATCH):
        (gradient,) = torch.autograd.grad(prediction[row], read, retain_graph=True)
        assert gradient.isfinite().all()
        reached = gradient.flatten(1).abs().sum(-1) > 0
        assert reached.tolist() == [other == row for other in range(BATCH)]
        if head.reads_hidden_states:
            assert (gradient[row][final.attention_mask[row] == 0] == 0).all()


def test_padding_changes_nothing(make):
    """Neither more of it nor what stands in it."""
    head, final = make(), final_position()
    garbage = 1e4 * torch.randn(BATCH, LENGTH + 5, HIDDEN, generator=torch.Generator().manual_seed(1))
    mask = torch.nn.functional.pad(final.attention_mask, (5, 0))
    real = mask.bool().unsqueeze(-1)
    states = torch.where(real, torch.nn.functional.pad(final.hidden_states, (0, 0, 5, 0)), garbage)
    with torch.no_grad():
        output = head(final, GRID_TOKEN_IDS)
        torch.testing.assert_close(
            parts(head(FinalPosition(final.logits, mask, states, None), GRID_TOKEN_IDS)), parts(output)
        )
        # Each row alone, without any padding.
        for row in range(BATCH):
            length = final.attention_mask[row].sum()
            alone = FinalPosition(
                final.logits[row : row + 1],
                torch.ones(1, length, dtype=torch.long),
                final.hidden_states[row : row + 1, LENGTH - length :],
                None,
            )
            prediction = number(head(alone, GRID_TOKEN_IDS[row : row + 1]))
            torch.testing.assert_close(prediction, number(output)[row : row + 1])


def test_parameters_come_back_from_safetensors(make, tmp_path):
    head, other = make(seed=0), make(seed=1)
    file = tmp_path / "head.safetensors"
    save_file(head.state_dict(), file)
    final = final_position()
    with torch.no_grad():
        expected = parts(head(final, GRID_TOKEN_IDS))
        before = parts(other(final, GRID_TOKEN_IDS))
        other.load_state_dict(load_file(file))
        after = parts(other(final, GRID_TOKEN_IDS))
    assert all(torch.equal(*pair) for pair in zip(expected, after, strict=True))
    if head.state_dict():
        assert not all(torch.equal(*pair) for pair in zip(expected, before, strict=True))
    assert {name for name, _ in head.named_parameters()} == {*head.state_dict()}


def test_inputs_stay_as_they_are(make):
    final, ids = final_position(), GRID_TOKEN_IDS.clone()
    make()(final, ids)
    fresh = final_position()
    assert torch.equal(ids, GRID_TOKEN_IDS)
    for name in ("logits", "attention_mask", "hidden_states"):
        assert torch.equal(getattr(final, name), getattr(fresh, name)), name


class TestUpperValue:
    def near_one(self, rest):
        """Logits whose upper value, 4 on token 3, has p = 1 - rest; the rest is spread over the other ten tokens."""
        logits = torch.full((BATCH, VOCABULARY), math.log(rest / (1 - rest) / (VOCABULARY - 1)))
        logits[range(BATCH), GRID_TOKEN_IDS[:, 0]] = 0
        return FinalPosition(logits + 5, torch.ones(BATCH, 1), None, None)

    def test_by_hand(self):
        # Probabilities 0.5 on token 3, the upper value in the first place, and 0.05 on each of the ten others.
        output = UpperValueHead(VALUES)(self.near_one(0.5), GRID_TOKEN_IDS)
        assert output.values.tolist() == [0, 4]
        torch.testing.assert_close(output.probs, torch.full((BATCH, 2), 0.5))
        torch.testing.assert_close(decisions.mean(output), torch.full((BATCH,), 2.0))

    @pytest.mark.parametrize("rest", [0.3, 1e-3, 1e-6, 1e-8, 1e-12])
    def test_close_to_one_the_rest_keeps_its_digits(self, rest):
        output = UpperValueHead(VALUES)(self.near_one(rest), GRID_TOKEN_IDS)
        low, high = output.log_probs.unbind(-1)
        # log(1e-6) = -13.8155
        torch.testing.assert_close(low, torch.full((BATCH,), math.log(rest)), rtol=1e-5, atol=0)
        torch.testing.assert_close(high, torch.full((BATCH,), math.log1p(-rest)), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(low.exp(), torch.full((BATCH,), rest), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("rest", [1e-6, 1e-12])
    def test_a_confident_error_is_punished_and_moved(self, rest):
        """p near 1 and the target at 0: the loss is -log(1 - p), its gradient p - t = 1 on the upper token."""
        final = self.near_one(rest)
        final.logits.requires_grad_()
        loss = LogLoss()(UpperValueHead(VALUES)(final, GRID_TOKEN_IDS), torch.zeros(BATCH))
        loss.sum().backward()
        torch.testing.assert_close(loss, torch.full((BATCH,), -math.log(rest)), rtol=1e-5, atol=0)
        # The others share -1 equally.
        expected = torch.full((BATCH, VOCABULARY), -0.1)
        expected[range(BATCH), GRID_TOKEN_IDS[:, 0]] = 1
        torch.testing.assert_close(final.logits.grad, expected, rtol=1e-4, atol=1e-5)

    def test_the_two_probabilities_sum_to_one(self):
        output = UpperValueHead(VALUES)(final_position(), GRID_TOKEN_IDS)
        torch.testing.assert_close(output.mass, torch.ones(BATCH))
