"""What every loss of the package fulfils. A new loss is reached unasked; it needs an entry in CASES."""

import importlib
import inspect
import pkgutil

import pytest
import torch

from raft_peft import GridDistribution, losses

BATCH = 4
TARGET = torch.tensor([0.0, 1.0, 3.0, 4.0])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def on_prediction(logits, target):
    return logits[:, 0], target


def on_pair(logits, target):
    """Two predictions, and the target as the margin between them."""
    return logits[:, 0], logits[:, 1], target


def on_text(logits, target):
    return logits.log_softmax(-1), MASK


def on_grid(logits, target):
    """The grid 0, 4 on the first two of three tokens."""
    return GridDistribution.from_logits(logits, torch.tensor([[0, 1]]).expand(len(logits), 2), [0, 4]), target


def on_two_values(logits, target):
    """All probability on 0 and 4."""
    return GridDistribution(logits[:, :2].float().log_softmax(-1), torch.tensor([0.0, 4.0])), target


# name -> how its arguments come of logits of shape (batch, 3) and targets, and the loss in each variant
CASES = {
    "squared_error": (on_prediction, [losses.squared_error]),
    "BradleyTerry": (on_pair, [losses.BradleyTerry(), losses.BradleyTerry(beta=0.5)]),
    "cross_entropy": (on_text, [losses.cross_entropy]),
    "ExpectedSquaredError": (
        on_grid,
        [losses.ExpectedSquaredError(), losses.ExpectedSquaredError(renormalize=True)],
    ),
    "SampledSquaredError": (
        on_grid,
        [losses.SampledSquaredError(32), losses.SampledSquaredError(32, renormalize=True)],
    ),
    "LogLoss": (on_two_values, [losses.LogLoss()]),
    "CRPS": (on_grid, [losses.CRPS()]),
    "GridMass": (on_grid, [losses.GridMass()]),
    "RankedProbabilityScore": (on_grid, [losses.RankedProbabilityScore()]),
    "SoftCrossEntropy": (on_grid, [losses.SoftCrossEntropy(), losses.SoftCrossEntropy(label_smoothing=1.0)]),
    "WassersteinDistance": (on_grid, [losses.WassersteinDistance()]),
}


def package_losses():
    """The names of all losses that are defined in the files of the package."""
    names = set()
    for module in pkgutil.iter_modules(losses.__path__):
        if module.name not in ("base", "label_shares", "loss_sum"):
            loaded = importlib.import_module(f"raft_peft.losses.{module.name}")
            names |= {
                name
                for name, item in vars(loaded).items()
                if (inspect.isfunction(item) or inspect.isclass(item))
                and item.__module__ == loaded.__name__
                and not name.startswith("_")
            }
    return sorted(names)


def test_every_loss_is_exported_and_has_a_case():
    assert package_losses() == sorted({*losses.__all__} - {"DistributionLoss", "Loss", "LossSum"})
    missing = {*package_losses()} - {*CASES}
    assert not missing, f"Add a case to CASES for {sorted(missing)}."


@pytest.fixture(params=[(name, index) for name in CASES for index in range(len(CASES[name][1]))], ids=str)
def case(request):
    name, index = request.param
    arguments, variants = CASES[name]
    return arguments, variants[index]


def logits_of(dtype=torch.float32, scale=1.0):
    logits = scale * torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(0))
    return logits.to(dtype).requires_grad_()


def call(loss, arguments):
    torch.manual_seed(1)  # for the loss that draws
    return loss(*arguments)


def tensors_of(arguments):
    for argument in arguments:
        yield from (argument.log_probs, argument.values) if isinstance(argument, GridDistribution) else (argument,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_float32_value_an_example(case, dtype):
    arguments, loss = case
    value = call(loss, arguments(logits_of(dtype), TARGET.to(dtype)))
    assert (value.shape, value.dtype) == ((BATCH,), torch.float32)
    with torch.no_grad():
        assert call(loss, arguments(logits_of(dtype), TARGET.to(dtype))).shape == (BATCH,)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_precision_comes_close(case, dtype):
    arguments, loss = case
    with torch.no_grad():
        expected = call(loss, arguments(logits_of(), TARGET))
        value = call(loss, arguments(logits_of(dtype), TARGET.to(dtype)))
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0.05)


def test_whole_numbers_as_targets(case):
    arguments, loss = case
    expected = call(loss, arguments(logits_of(), TARGET))
    torch.testing.assert_close(call(loss, arguments(logits_of(), TARGET.long())), expected)


def test_each_example_has_its_own_finite_gradient(case):
    arguments, loss = case
    logits = logits_of()
    value = call(loss, arguments(logits, TARGET))
    for index in range(BATCH):
        (gradient,) = torch.autograd.grad(value[index], logits, retain_graph=True)
        assert gradient.isfinite().all()
        reached = gradient.abs().sum(-1) > 0
        assert reached.tolist() == [row == index for row in range(BATCH)]


def test_a_row_alone_costs_what_it_costs_in_the_batch(case):
    arguments, loss = case
    with torch.no_grad():
        together = call(loss, arguments(logits_of(), TARGET))
        made = arguments(logits_of(), TARGET)
        for index in range(BATCH):
            alone = [
                GridDistribution(part.log_probs[index : index + 1], part.values)
                if isinstance(part, GridDistribution)
                else part[index : index + 1]
                for part in made
            ]
            torch.testing.assert_close(call(loss, alone), together[index : index + 1])


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_finite_where_the_model_is_certain(case, scale):
    arguments, loss = case
    logits = logits_of(scale=scale)
    value = call(loss, arguments(logits, TARGET))
    value.sum().backward()
    assert value.isfinite().all()
    assert logits.grad.isfinite().all()


def test_arguments_stay_as_they_are(case):
    arguments, loss = case
    made = arguments(logits_of(), TARGET.clone())
    before = [tensor.detach().clone() for tensor in tensors_of(made)]
    call(loss, made).sum().backward()
    for tensor, old in zip(tensors_of(made), before, strict=True):
        assert torch.equal(tensor, old)
