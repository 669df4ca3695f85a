"""A graph of ONNX operators that is written like PyTorch: values that can be added, multiplied and cut.

    graph = Graph('double')
    x = graph.input('x', ('batch', 3))
    graph.output('y', x * 2, ('batch', 3))
    graph.save('double.onnx')

Only what the model needs is here. Every operator is in ONNX's standard operator set OPSET, which onnxruntime and
onnxruntime-web have run for years (https://onnx.ai/onnx/operators/).
"""
import numpy as np
import torch

from utils import UserError, atomic_path

OPSET, IR_VERSION = 17, 8  # of ONNX 1.12, from 2022
INSTALL = 'pip install -r requirements-onnx.txt'


def import_onnx(name='onnx'):
    """The module onnx, or onnxruntime. Raises UserError where it is missing."""
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f'--format onnx and --browser need the package {name}: {INSTALL}.') from None


class Graph:
    """An ONNX graph that grows node by node."""

    def __init__(self, name):
        self.onnx = import_onnx()
        self.name, self.nodes, self.initializers, self.inputs, self.outputs = name, [], [], [], []
        self.constants, self.count = {}, 0

    def input(self, name, shape, default=None):
        """An input of float32; shape: numbers, and names for what may have any size. default: a tensor that stands for
        it where none is given."""
        self.inputs.append(self._described(name, shape))
        if default is not None:
            self.initializers.append(self.onnx.numpy_helper.from_array(default.detach().float().numpy(), name))
        return Value(self, name)

    def output(self, name, value, shape):
        """Give out a value under a name."""
        self.nodes.append(self.onnx.helper.make_node('Identity', [value.name], [name], f'output_{name}'))
        self.outputs.append(self._described(name, shape))

    def _described(self, name, shape):
        return self.onnx.helper.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, shape)

    def add(self, operator, *inputs, **attributes):
        """The result of an operator: a Value. inputs: Values, or what `constant` takes."""
        name = self._new_name(operator.lower())
        names = [(one if isinstance(one, Value) else self.constant(one)).name for one in inputs]
        # Older versions of onnxruntime want nodes to have names.
        self.nodes.append(self.onnx.helper.make_node(operator, names, [name], name, **attributes))
        return Value(self, name)

    def constant(self, numbers):
        """A constant: a number (float32), a list of whole numbers (int64: shapes, axes), or a tensor (float32).

        A tensor whose numbers are all exact in half precision is stored so, which halves the file.
        """
        if isinstance(numbers, torch.Tensor):
            return self._stored(numbers.detach().cpu().float().contiguous().numpy())
        array = np.array(numbers, dtype=np.int64 if isinstance(numbers, list) else np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = self._initializer(array)
        return self.constants[key]

    def _stored(self, array):
        with np.errstate(over='ignore'):
            half = array.astype(np.float16)
        if array.size < 2 or not np.array_equal(half.astype(np.float32), array):
            return self._initializer(array)
        return self.add('Cast', self._initializer(half), to=self.onnx.TensorProto.FLOAT)

    def _initializer(self, array):
        name = self._new_name('constant')
        self.initializers.append(self.onnx.numpy_helper.from_array(array, name))
        return Value(self, name)

    def _new_name(self, kind):
        self.count += 1
        return f'{kind}_{self.count}'

    def save(self, path, note=''):
        """Write the graph, atomically. note: a text that stays in the file (its doc_string)."""
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION,
                                  producer_name='StyleSDF', doc_string=note)
        self.onnx.checker.check_model(model)
        with atomic_path(path) as temporary:
            temporary.write_bytes(model.SerializeToString())
        return path


class Value:
    """What a node of a Graph gives."""

    def __init__(self, graph, name):
        self.graph, self.name = graph, name

    def __add__(self, other):
        return self.graph.add('Add', self, other)

    def __sub__(self, other):
        return self.graph.add('Sub', self, other)

    def __rsub__(self, other):
        return self.graph.add('Sub', other, self)

    def __mul__(self, other):
        return self.graph.add('Mul', self, other)

    def __truediv__(self, other):
        return self.graph.add('Div', self, other)

    def __matmul__(self, other):
        return self.graph.add('MatMul', self, other)

    def __neg__(self):
        return self.graph.add('Neg', self)

    __radd__, __rmul__ = __add__, __mul__

    def unary(self, operator, **attributes):
        """Sin, Cos, Exp, Log, Sqrt, Reciprocal, Sigmoid, Softplus, LeakyRelu, … of each number."""
        return self.graph.add(operator, self, **attributes)

    def rsqrt(self):
        return self.unary('Sqrt').unary('Reciprocal')

    def square(self):
        return self * self

    def sum(self, axis):
        """The sum along one axis, which stays, with length 1."""
        return self.graph.add('ReduceSum', self, [axis], keepdims=1)

    def mean(self, axis):
        """The mean along one axis, which stays, with length 1."""
        return self.unary('ReduceMean', axes=[axis], keepdims=1)

    def normalized(self):
        """Unit vectors along the last axis."""
        return self * self.square().sum(-1).rsqrt()

    def cut(self, first, last, axis=-1):
        """The slice first:last of one axis."""
        return self.graph.add('Slice', self, [first], [np.iinfo(np.int64).max if last is None else last], [axis])

    def reshape(self, *shape):
        """-1: what is left; 0: as before."""
        return self.graph.add('Reshape', self, list(shape))

    def transpose(self, *axes):
        return self.unary('Transpose', perm=list(axes))

    def unsqueeze(self, *axes):
        return self.graph.add('Unsqueeze', self, list(axes))

    def squeeze(self, *axes):
        return self.graph.add('Squeeze', self, list(axes))


def joined(*values, axis=-1):
    """Values one after the other along an axis."""
    return values[0].graph.add('Concat', *values, axis=axis)
