"""Gradients of a batch that is worked through in chunks."""
import contextlib

import torch

from utils import UserError


def chunks(start, stop, size):
    """Slices of at most `size` that cover range(start, stop)."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def checked_chunk(opt):
    """--chunk, no larger than the batch. Raises UserError for batches that cannot be trained on."""
    batch, chunk = opt.training.batch, min(opt.training.chunk, opt.training.batch)
    if batch < 2:
        raise UserError(f'--batch {batch} is too small; use at least 2 images a step.')
    if batch % chunk:
        raise UserError(f'--batch {batch} is not divisible by --chunk {chunk}; use a chunk that divides it.')
    return chunk


class Terms(dict):
    """Sums of scalars by name, kept on the device."""

    def add(self, scale, **values):
        """Add scale * the mean of each value."""
        for name, value in values.items():
            self[name] = self.get(name, 0) + scale * value.detach().mean()


@contextlib.contextmanager
def frozen(module):
    """Inside, the module's parameters collect no gradients, which saves memory and time."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def opponents(opt, real):
    """The real images with which the relativistic loss compares the fakes, or None where it is another loss."""
    return real if opt.training.adversarial_loss == 'relativistic' else None


def backward_in_chunks(compute, slices, loss_of):
    """Backpropagate loss_of(the outputs of all slices together) with the memory of one slice.

    compute(indices) gives outputs (n,…) for a slice of the batch. loss_of(outputs) gives the loss and any second value,
    which is returned. The loss may depend on all outputs in any way: by the chain rule its gradient with respect to the
    outputs is all that the graph of a slice needs. With several slices each is computed twice.
    """
    keep = len(slices) == 1
    with torch.set_grad_enabled(keep):
        outputs = [compute(indices) for indices in slices]
    whole = torch.cat([output.detach() for output in outputs]).requires_grad_()
    loss, second = loss_of(whole)
    gradient, = torch.autograd.grad(loss, whole)
    for indices, output, output_gradient in zip(slices, outputs,
                                                gradient.split([len(output) for output in outputs]), strict=True):
        (output if keep else compute(indices)).backward(output_gradient)
    return second
