"""CUDA graphs: the kernels that a function launches, captured once and from then on launched as one.

A picture of one latent is some 330 small kernels, which a CPU launches more slowly than a fast GPU runs them. A capture
has rules (PyTorch's notes on CUDA semantics): shapes and addresses stay those of the capture, nothing waits for the
GPU, and what is compiled or tuned at its first use has had that use.
"""
import contextlib
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from camera import Cameras
from model import Decoder
from op import kernels
from volume_renderer import VolumeRenderer

LARGEST_COUNT = 8  # captures of one function: each keeps memory of its own
AGREEMENT = 1e-2   # of the largest value; half precision summed in another order is nearer

_failures = []     # the first thing that went wrong: from then on this process captures and replays nothing


class Graphed:
    """A function as a CUDA graph, one for each kind of arguments: shapes, number formats, device and constants.

    function: takes and returns tensors in lists, tuples and dicts, beside numbers, strings, True, False and None. It
    draws no random numbers, reads no value back and overwrites no argument. module: whose weights it reads; they may
    change and move, but not be exchanged for others.

    A call gives tensors of its own, as the function does. It is the plain call on a CPU, where autograd is on, inside
    another capture, for other arguments, and with STYLESDF_OPS=plain; and for good, which is said once, after a capture
    that failed or whose first replay differs from the plain call. For one thread at a time.
    """

    def __init__(self, function, module):
        self.function, self.captures = function, {}
        self.weights = [*module.parameters(), *module.buffers()]

    def __call__(self, *args, **kwargs):
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        kind = None
        if _fits(leaves, tensors):
            kind = (structure, tensors[0].device, *map(_kind, leaves), *(weight.data_ptr() for weight in self.weights))
            if kind in self.captures:
                return self.captures[kind].replay(tensors)
        values = self.function(*args, **kwargs)  # compiles, tunes and checks what does so at its first use
        if kind and len(self.captures) < LARGEST_COUNT:
            try:
                self.captures[kind] = _capture(self.function, leaves, structure, values)
            except Exception as error:  # whatever PyTorch, a library or the driver may do: the plain way goes on
                while error.__context__:  # after a broken capture its end fails too, and says less
                    error = error.__context__
                _failures.append(f'{type(error).__name__}: {" ".join(str(error).split())}'[:300])
                kernels.unusable('CUDA graphs do not work here', _failures[0])
        return values


class GraphedRenderer(VolumeRenderer):
    """A VolumeRenderer whose pictures come by a CUDA graph where that is possible; it must not jitter its samples."""

    def forward(self, w, cameras, *, color=True, decisive=None, **wanted):
        render = super().forward
        if not color:  # surfaces are too much work for their launches to matter
            return render(w, cameras, color=False, decisive=decisive, **wanted)

        def render_with(w, camera, **wanted):
            return render(w, Cameras(**camera), **wanted)

        return _graph_of(self, 'forward', render_with)(w, vars(cameras), **wanted)


class GraphedDecoder(Decoder):
    """A Decoder by CUDA graphs where that is possible."""

    def modulate(self, w_prime):
        return _graph_of(self, 'modulate', super().modulate)(w_prime)

    def synthesize(self, features, weights, noise):
        return _graph_of(self, 'synthesize', super().synthesize)(features, weights, noise)


def _graph_of(module, name, function):
    """The Graphed of a module's function, made at its first call: by then the weights are where they stay."""
    graphs = vars(module).setdefault('_graphs', {})
    if name not in graphs:
        graphs[name] = Graphed(function, module)
    return graphs[name]


class Capture(NamedTuple):
    """A graph, and the tensors that it reads and writes."""
    graph: torch.cuda.CUDAGraph
    inputs: list
    outputs: Any

    def replay(self, tensors):
        """What the function gives for these tensors, in memory of its own."""
        torch._foreach_copy_(self.inputs, tensors)
        self.graph.replay()
        return tree_map_only(torch.Tensor, torch.clone, self.outputs)


def _fits(leaves, tensors):
    """Whether a call with these arguments can be a graph."""
    return (not _failures and bool(tensors) and kernels.wanted(tensors[0]) and not torch.is_grad_enabled()
            and all(tensor.device == tensors[0].device for tensor in tensors)
            and all(leaf is None or isinstance(leaf, torch.Tensor | bool | int | float | str) for leaf in leaves)
            and not torch.cuda.is_current_stream_capturing())


def _kind(leaf):
    """What about an argument a capture is tied to."""
    return (leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else (type(leaf), leaf)


def _capture(function, leaves, structure, expected):
    """The Capture of a function with arguments like `leaves`, for which it gave `expected`. Raises what goes wrong."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    inputs = [torch.empty_like(tensor) for tensor in tensors]  # without their values, which the replay has to bring
    at = iter(inputs)
    static = [next(at) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(leaves, structure)
    static_args, static_kwargs = tree_unflatten(static, structure)

    device = tensors[0].device
    now, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(now)
    with torch.cuda.stream(stream):  # which a capture that fails does not leave by itself
        function(*args, **kwargs)    # what libraries set up for each stream
        with _capturing(device, stream) as graph:
            outputs = function(*static_args, **static_kwargs)
    now.wait_stream(stream)

    capture = Capture(graph, inputs, outputs)
    for value, reference in zip(tree_leaves(capture.replay(tensors)), tree_leaves(expected), strict=True):
        if isinstance(value, torch.Tensor) and value.numel():
            difference, largest = (value - reference).abs().max().item(), reference.abs().max().item()
            if not difference <= AGREEMENT * largest:  # also where it is no number
                raise ValueError(f'values differ from the plain ones by up to {difference:.1e} of {largest:.1e}')
    if not all(map(torch.equal, inputs, tensors)):
        raise ValueError('the function overwrites its arguments')
    return capture


@contextlib.contextmanager
def _capturing(device, stream):
    """Capture what the block launches, into the CUDAGraph that it gets.

    PyTorch 2.11 does not tidy up after a capture that the driver broke off: its random generator and its memory would
    go on waiting for the end.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    generator = torch.cuda.default_generators[device.index]
    state = generator.clone_state()
    try:
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode='thread_local'):
            yield graph
    except BaseException:
        generator.graphsafe_set_state(state)
        with contextlib.suppress(Exception):  # it has ended
            torch._C._cuda_endAllocateToPool(device.index, pool)
        raise
