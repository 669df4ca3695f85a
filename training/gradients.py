"""Gradients of a batch that is worked through in chunks."""
import contextlib

import torch


def chunks(start, stop, size):
    """Slices of at most `size` that cover range(start, stop)."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


class Terms(dict):
    """Sums of scalars by name, kept on the device."""

    def add(self, scale, **values):
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


def backward_in_chunks(compute, parts, loss_of):
    """Backpropagate loss_of(the outputs of all parts together) with the memory of one part.

    compute(part) gives outputs (n,…) for a slice. The loss may depend on all of them in any way: by the chain rule its
    gradient by the outputs is all that a part's graph needs. With several parts each is computed twice. Returns the
    loss, detached.
    """
    keep = len(parts) == 1
    with torch.set_grad_enabled(keep):
        outputs = [compute(part) for part in parts]
    whole = torch.cat([output.detach() for output in outputs]).requires_grad_()
    loss = loss_of(whole)
    gradient, = torch.autograd.grad(loss, whole)
    for part, output, part_gradient in zip(parts, outputs, gradient.split([len(output) for output in outputs]),
                                           strict=True):
        (output if keep else compute(part)).backward(part_gradient)
    return loss.detach()
