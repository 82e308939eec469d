import torch

from raft_peft.losses import squared_error


def test_one_value_an_example():
    loss = squared_error(torch.tensor([1.0, 4.0]), torch.tensor([3.5, 4.0]))
    torch.testing.assert_close(loss, torch.tensor([6.25, 0.0]))


def test_bf16_predictions_are_squared_in_float32():
    loss = squared_error(torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([3.001]))
    torch.testing.assert_close(loss, torch.tensor([2.001**2]))


def test_the_gradient_is_twice_the_error():
    prediction = torch.tensor([1.0, 4.0], requires_grad=True)
    squared_error(prediction, torch.tensor([3.0, 3.0])).sum().backward()
    torch.testing.assert_close(prediction.grad, torch.tensor([-4.0, 2.0]))
