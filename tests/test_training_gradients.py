"""Gradients in chunks: the gradient of the whole batch, whatever the loss does with its images."""
import pytest
import torch

from options import parse
from training.gradients import Terms, backward_in_chunks, checked_chunk, chunks, frozen
from utils import UserError


def test_chunks_cover_the_range():
    assert chunks(3, 10, 3) == [slice(3, 6), slice(6, 9), slice(9, 10)] and chunks(0, 0, 4) == []


@pytest.mark.parametrize('size', [1, 2, 3, 5])
def test_backward_in_chunks_is_the_gradient_of_the_whole(size):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)

    def loss_of(outputs):  # images that are compared with each other
        return (outputs.var(0).sum() + outputs.prod(1).sum()), 'second'

    loss, _ = loss_of(layer(x))
    expected = torch.autograd.grad(loss, list(layer.parameters()))
    assert backward_in_chunks(lambda indices: layer(x[indices]), chunks(0, 5, size), loss_of) == 'second'
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-12)


def test_terms_add_up_means():
    terms = Terms()
    for scale, values in ((0.25, [1., 3.]), (0.75, [2., 6.])):
        terms.add(scale, loss=torch.tensor(values, requires_grad=True))
    assert terms['loss'].item() == 0.25 * 2 + 0.75 * 4 and not terms['loss'].requires_grad


def test_frozen_parameters_collect_nothing_and_thaw():
    layer, x = torch.nn.Linear(2, 1), torch.randn(3, 2, requires_grad=True)
    with pytest.raises(ValueError, match='a bug'), frozen(layer):
        layer(x).sum().backward()
        raise ValueError('a bug')
    assert layer.weight.grad is None and x.grad is not None and layer.weight.requires_grad


@pytest.mark.parametrize('batch, chunk, message', [(1, 1, 'too small'), (6, 4, 'not divisible')])
def test_batches_that_cannot_be_trained_on(batch, chunk, message):
    opt = parse('train_volume_renderer', '', ['--batch', str(batch), '--chunk', str(chunk)])
    with pytest.raises(UserError, match=message):
        checked_chunk(opt)
    assert checked_chunk(parse('train_volume_renderer', '', ['--batch', '6', '--chunk', '64'])) == 6
