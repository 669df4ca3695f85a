"""A CUDA device that is pretended on a CPU, for tests of which tensor lies where and of where the host waits.

Inside `PretendDevice()` the project's own code runs with --device cuda: a tensor there is a Resident, a wrapper that
holds a CPU tensor with its values. To PyTorch's C++ it is of device 'meta', which nothing else here uses and which
autograd knows, to Python code it says 'cuda:0'. Every operation checks that its operands are on one device, by
PyTorch's rules (as torch/_subclasses/fake_tensor.py has them, but a CPU number may join elementwise operations only).
`waits` counts by module of the project what would make the host wait for the GPU.

Not seen: what happens inside one operation on a real GPU (kernels, their number formats, memory, streams); TorchScript
and compiled code; devices beyond the first; work on other threads; modules that are still on the CPU when an optimizer
takes their parameters (Module.to makes new ones here). torch.save writes what a GPU's tensors are after
map_location='cpu'.
"""
import collections
import contextlib
import functools
import re
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch.cuda._utils import _get_device_index
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from op import kernels

ROOT = Path(__file__).resolve().parent.parent
CUDA, STAND_IN, CPU = torch.device('cuda', 0), torch.device('meta'), torch.device('cpu')
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor}
# Beside elementwise operations these take numbers on the CPU.
TAKE_NUMBERS = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
SIZES_FROM_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
Generator = torch.Generator


class Resident(torch.Tensor):
    """A tensor on the pretended device; `held` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, held.stride(), held.storage_offset(),
                                                   dtype=held.dtype, device=STAND_IN)

    def __init__(self, held):
        self.held = held

    def __deepcopy__(self, memo):
        copied = memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
        copied._is_param = isinstance(self, torch.nn.Parameter)
        return copied

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        return perform(function, arguments, keywords or {})


class ResidentGenerator(Generator):
    """torch.Generator of either device: the pretended one's draws what a CPU's draws."""

    def __new__(cls, device='cpu'):
        self = super().__new__(cls)
        self.place = CPU if torch.device(device).type == 'cpu' else CUDA
        return self

    device = property(lambda self: self.place)


def mapped(tree, kind, change):
    """An operation's operands or results, with change(x) in place of each x of a type. (PyTorch's own trees are slow.)
    """
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)([mapped(part, kind, change) for part in tree])
    if isinstance(tree, dict):
        return {name: mapped(part, kind, change) for name, part in tree.items()}
    return tree


def held(tree):
    """A tree with what its Residents hold."""
    return mapped(tree, Resident, lambda tensor: tensor.held)


class Facts(NamedTuple):
    """What is asked of each ATen operation."""
    name: str
    written: list      # (place, name) of the operands that it writes
    returns: int       # how many results
    tags: frozenset
    sizes_from_values: bool


@functools.cache
def facts(function):
    schema, tags = function._schema, frozenset(function.tags)
    written = [(i, argument.name) for i, argument in enumerate(schema.arguments)
               if argument.alias_info and argument.alias_info.is_write]
    return Facts(function.name().removeprefix('aten::'), written, len(schema.returns), tags,
                 bool(SIZES_FROM_VALUES & tags) or function is aten._local_scalar_dense.default)


def perform(function, arguments, keywords, waits=lambda what: None):
    """Run an ATen operation: devices as a GPU would have them, values by the CPU. waits(what): the host would wait."""
    target, tensors = keywords.get('device'), []
    mapped((arguments, keywords), torch.Tensor, tensors.append)
    resident = [isinstance(tensor, Resident) for tensor in tensors]
    if not any(resident) and target != STAND_IN:
        return function(*arguments, **keywords)
    if function in COPIES:
        source, there = (resident[-1], resident[0]) if function is not aten._to_copy.default else (
            resident[0], target == STAND_IN if target else resident[0])
        non_blocking = keywords.get('non_blocking') or len(arguments) > 2 and arguments[2] is True
        # Back in memory that is not pinned the numbers must be there when the call ends.
        if source != there and not (there and non_blocking):
            waits('copy to the GPU' if there else 'copy to the CPU')
    else:
        there = True
        check(function, arguments, tensors, resident)
        if function in INDEXING:
            indices = [index for index in arguments[1] if index is not None]
            fills = len(arguments) > 2 and arguments[2].numel() == 1 and not isinstance(arguments[2], Resident)
            if any(index.dtype == torch.bool for index in indices) and not fills:
                waits('index by a mask')
            if not all(isinstance(index, Resident) for index in indices):
                waits('index on the CPU')
        elif facts(function).sizes_from_values:
            waits(facts(function).name)
    if target is not None:
        keywords = keywords | {'device': CPU}
    found = function(*held(arguments), **held({name: value for name, value in keywords.items()
                                               if name != 'pin_memory'}))
    written = [arguments[i] if i < len(arguments) else keywords.get(name) for i, name in facts(function).written]
    if written:
        if torch.Tag.inplace_view in facts(function).tags:  # the wrapper takes the new shape too
            with no_dispatch():
                function(*arguments, **keywords)
        return written[0] if facts(function).returns == 1 else tuple(written) if facts(function).returns else None
    return mapped(found, torch.Tensor, Resident) if there else found


def check(function, arguments, tensors, resident):
    """Raise RuntimeError, as PyTorch does, where operands of one operation lie on different devices."""
    if all(resident):
        return
    numbers_join = (torch.Tag.pointwise in facts(function).tags or function in TAKE_NUMBERS
                    or facts(function).name.startswith('_foreach'))
    strangers = [tensor for tensor, own in zip(tensors, resident, strict=True)
                 if not own and not (numbers_join and tensor.dim() == 0)]
    if function in INDEXING and isinstance(arguments[0], Resident):
        indices = [id(index) for index in arguments[1] if index is not None]
        strangers = [tensor for tensor in strangers if id(tensor) not in indices and tensor.dim()]
    into = [arguments[i] for i, _ in facts(function).written
            if i < len(arguments) and isinstance(arguments[i], torch.Tensor)]
    if strangers or any(not isinstance(tensor, Resident) for tensor in into):
        raise RuntimeError(f'Expected all tensors to be on the same device, but found at least two devices, cuda:0 and '
                           f'cpu! ({function})')


class Dispatch(TorchDispatchMode):
    """Operations, those without operands on the pretended device included."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return perform(function, arguments, keywords or {}, self.waits)


def translated(value):
    """A device, or its name, as C++ is to see it."""
    if isinstance(value, torch.device) and value.type == 'cuda':
        return STAND_IN
    return STAND_IN if isinstance(value, str) and re.fullmatch(r'cuda(:0)?', value) else value


def moved(tensor, device):
    return tensor if device is None or translated(device) != STAND_IN else tensor.to(STAND_IN)


def index_of(index):
    """An index with tensors in place of lists and arrays, as PyTorch reads it."""
    if isinstance(index, tuple):
        return tuple(index_of(part) for part in index)
    return torch.as_tensor(index) if isinstance(index, (list, np.ndarray)) else index


class Functions(TorchFunctionMode):
    """What Python code asks PyTorch for, before C++ reads the devices in it."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords, name = dict(keywords or {}), getattr(function, '__name__', '')
        first = arguments[0] if arguments else None
        if function is torch.device:
            return function(*arguments, **keywords)
        if function is torch.Tensor.backward:
            with self:  # see has_torch_function below
                return torch.autograd.backward(first, *arguments[1:], **{
                    'grad_tensors' if key == 'gradient' else key: value for key, value in keywords.items()})
        generator, device = keywords.get('generator'), keywords.get('device')
        if generator is not None:
            wanted = translated(device) if device is not None else CPU
            if (translated(generator.device) == STAND_IN) != (wanted == STAND_IN):
                raise RuntimeError(f"Expected a '{device or 'cpu'}' device type for generator but found "
                                   f"'{generator.device.type}'")
        if function in (torch.tensor, torch.as_tensor, torch.asarray):
            if not isinstance(first, torch.Tensor):
                device = keywords.pop('device', None)
                return moved(function(*arguments, **keywords), device)
        elif name == 'pin_memory':
            return first
        elif isinstance(first, Resident):
            if name in ('new_tensor', 'tolist', 'numpy', '__array__', 'data_ptr', '__cuda_array_interface__'):
                return self.special(name, first, arguments[1:], keywords)
            if name == '__get__':
                owner = getattr(function, '__self__', None)
                if owner in (torch.Tensor.is_cuda, torch.Tensor.is_cpu, torch.Tensor.is_meta):
                    return owner is torch.Tensor.is_cuda
            if name == 'cumprod' and torch.is_grad_enabled() and first.requires_grad:
                self.waits('cumprod, whose derivative asks for zeros')  # not where it sees a subclass of Tensor
            if name in ('__getitem__', '__setitem__'):
                arguments = first, index_of(arguments[1]), *arguments[2:]
                if name == '__setitem__' and isinstance(arguments[2], (bool, int, float)):
                    arguments = *arguments[:2], torch.tensor(arguments[2], dtype=first.dtype)
        found = function(*(translated(value) if isinstance(value, (torch.device, str)) else value
                           for value in arguments),
                         **{key: translated(value) if key == 'device' else value for key, value in keywords.items()})
        return CUDA if isinstance(found, torch.device) and found == STAND_IN else found

    def special(self, name, tensor, arguments, keywords):
        """The answers that C++ would not take from a wrapper."""
        if name == 'new_tensor':
            return moved(torch.tensor(*arguments, **{'dtype': tensor.dtype} | keywords), CUDA)
        if name == 'tolist':
            self.waits('tolist')
            return tensor.held.tolist()
        if name == 'data_ptr':
            return tensor.held.data_ptr()
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
                        'memory first.')


class PretendDevice(contextlib.ExitStack):
    """Context in which there is a CUDA device.

    waits: Counter of (module of the project, what) of everything that makes the host wait for the GPU, since
    entry or `waits.clear()`. Emptying the allocator's caches counts too.
    """

    def __init__(self):
        super().__init__()
        self.waits = collections.Counter()

    def wait(self, what):
        frame = sys._getframe(1)
        while frame and not self.is_own(frame.f_code.co_filename):
            frame = frame.f_back
        place = Path(frame.f_code.co_filename).stem if frame else 'elsewhere'
        self.waits[place, what] += 1

    @staticmethod
    def is_own(file):
        path = Path(file)
        return path.is_relative_to(ROOT) and not {'tests', 'site-packages'} & {*path.relative_to(ROOT).parts}

    def __enter__(self):
        super().__enter__()
        def save(contents, *to, original=torch.save, **kind):
            original(tree_map(lambda leaf: plain(leaf, self.wait), contents), *to, **kind)

        def of_device(answer, optional=True):  # PyTorch's own check comes first
            return lambda device=None: (_get_device_index(device, optional), answer)[1]

        self.enter_context(mock.patch.multiple(
            torch.cuda, is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0,
            get_device_name=of_device('pretended'), get_device_capability=of_device((9, 0)),
            max_memory_allocated=of_device(0), reset_peak_memory_stats=of_device(None),
            set_device=of_device(None, optional=False), synchronize=lambda device=None: self.wait('synchronize'),
            empty_cache=lambda: self.wait('empty_cache')))
        self.enter_context(mock.patch.multiple(torch, Generator=ResidentGenerator, save=save))
        # Else Python's part of the engine would hide the mode from the project's own derivatives.
        self.enter_context(mock.patch('torch.autograd.has_torch_function', lambda tensors: False))
        self.enter_context(mock.patch.object(kernels, 'wanted', lambda x: False))  # there is nothing to run them
        for name in ('_accelerator_graph_capture_health_check', '_cuda_graph_capture_health_check'):  # of 2.15, 2.11
            if hasattr(torch.optim.Optimizer, name):
                self.enter_context(mock.patch.object(torch.optim.Optimizer, name, lambda optimizer: None))
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        self.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self.enter_context(Functions(self.wait))
        self.enter_context(Dispatch(self.wait))
        return self


def plain(leaf, waits):
    """A leaf of a checkpoint as it is read again."""
    if isinstance(leaf, Resident):
        waits('torch.save')
        return leaf.held.detach()
    return leaf
