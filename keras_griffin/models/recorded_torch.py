"""A step of a model on PyTorch, recorded once and run without Keras around it.

Eager PyTorch decodes at the speed of Python: a token of a small model takes
some hundred operations, and choosing them costs several times what they cost.
"""

import operator

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

aten = torch.ops.aten

# Recording takes about as long as so many steps of the function itself, so
# that it pays after as many.
STEPS_BEFORE_RECORDING = 32

# MKL multiplies a few rows by a matrix faster as so many products of one row.
# Measured on two cores: 113 us in place of 174 us for 2 rows of 512 and a
# matrix of 512 x 1536, 189 in place of 239 for 4, 267 in place of 241 for 8.
MOST_SEPARATE_ROWS = 4

# Bytes that a value computed once a call may have, whatever it comes from.
SMALL = 65536

COPIES = {aten.lift_fresh_copy.default, aten.detach.default}
# Of the same elements in the same order.
RESHAPES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.expand.default,
    aten.slice.Tensor,
    aten.clone.default,
    aten._to_copy.default,
}
VIEWS = {
    aten.view.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
}


class RecordedStep:
    """A function of tensors and of weights that it closes over.

    After some eager calls with arguments of the same shapes its operations
    are recorded. Weights are read anew at each `start`, so that training
    between two texts is seen.

    Args:
        function: callable from nested structures of tensors to one of
            tensors, without side effects and random numbers. What it does may
            depend on the shapes and dtypes of the tensors, not on their
            values.
    """

    def __init__(self, function):
        self._function = torch.no_grad()(function)
        self._calls = {}
        self._recordings = {}

    def start(self):
        """Returns the function for the weights as they are now."""
        of_weights = {}

        def step(*args):
            leaves, spec = pytree.tree_flatten(args)
            key = spec, tuple((x.shape, x.dtype, x.device) for x in leaves)
            recording = self._recordings.get(key)
            if recording is None:
                calls = self._calls[key] = self._calls.get(key, 0) + 1
                if calls <= STEPS_BEFORE_RECORDING:
                    return self._function(*args)
                recording = _record(self._function, leaves, spec)
                self._recordings[key] = recording
            weights_part, step_part, output_spec = recording
            with torch.no_grad():
                if key not in of_weights:
                    of_weights[key] = weights_part()
                outputs = step_part(*of_weights[key], *leaves)
            return pytree.tree_unflatten(outputs, output_spec)

        return step


def _record(function, leaves, spec):
    output_spec = None

    def flat(*leaves):
        nonlocal output_spec
        outputs = function(*pytree.tree_unflatten(leaves, spec))
        outputs, output_spec = pytree.tree_flatten(outputs)
        return outputs

    module = make_fx(flat)(*leaves)
    if any(_writes(node) for node in module.graph.nodes):
        # Into a copy, as Keras writes: the copy with the write as one value.
        module = make_fx(torch.func.functionalize(module))(*leaves)
    for node in module.graph.nodes:
        node.meta["val"] = _without_data(node.meta.get("val"))
    if not any(_writes(node) for node in module.graph.nodes):
        _drop_copies(module.graph)
        if all(x.device.type == "cpu" for x in leaves):
            _separate_rows(module.graph)
        _drop_reshapes(module.graph)
        _merge_equal(module)
        module.graph.eliminate_dead_code()
    weights_part, step_part = _split(module)
    return weights_part.forward, step_part.forward, output_spec


def _is_call(node):
    return node.op == "call_function"


def _writes(node):
    schema = getattr(node.target, "_schema", None)
    return _is_call(node) and schema is not None and schema.is_mutable


def _without_data(value):
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(
        value.shape, value.stride(), dtype=value.dtype, device="meta"
    )


def _value(node):
    """A tensor without data, of the node's shape, dtype and strides."""
    return node.meta["val"]


def _alike(node, other):
    a, b = _value(node), _value(other)
    return (
        isinstance(a, torch.Tensor)
        and isinstance(b, torch.Tensor)
        and (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    )


def _drop_copies(graph):
    for node in graph.nodes:
        if _is_call(node) and node.target in COPIES:
            node.replace_all_uses_with(node.args[0])


def _drop_reshapes(graph):
    """Those that lead back to what another node is already."""
    for node in graph.nodes:
        source = node
        while _is_call(source) and source.target in RESHAPES:
            changes_values = (
                source.target is aten._to_copy.default
                and _value(source).dtype != _value(source.args[0]).dtype
            ) or (
                source.target in (aten.slice.Tensor, aten.expand.default)
                and _value(source).shape != _value(source.args[0]).shape
            )
            if changes_values:
                break
            source = source.args[0]
            if _alike(node, source):
                node.replace_all_uses_with(source)
                break


def _separate_rows(graph):
    """`x W` with few rows `x`, as a product for each of them."""
    for node in graph.nodes:
        if not (_is_call(node) and node.target is aten.mm.default):
            continue
        x, weights = (_value(arg) for arg in node.args)
        rows = x.shape[0]
        if x.dtype != torch.float32 or not 1 < rows <= MOST_SEPARATE_ROWS:
            continue

        def call(target, *args):
            new = graph.call_function(target, args)
            values = fx.map_arg(args, _value)
            new.meta["val"] = target(*values)
            return new

        with graph.inserting_before(node):
            product = call(
                aten.bmm.default,
                call(aten.unsqueeze.default, node.args[0], 1),
                call(aten.expand.default, node.args[1], [rows, *weights.shape]),
            )
            product = call(aten.squeeze.dim, product, 1)
        node.replace_all_uses_with(product)


def _merge_equal(module):
    """One node in place of all that compute the same."""
    seen = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            key = _constant_key(operator.attrgetter(node.target)(module))
        elif _is_call(node):
            key = node.target, repr(node.args), repr(node.kwargs)
        else:
            continue
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)


def _constant_key(constant):
    if constant.ndim or isinstance(constant, torch.nn.Parameter):
        return id(constant)
    return constant.dtype, constant.device, constant.item()


def _split(module):
    """Two modules: what weights alone decide, and the rest.

    The first has no arguments, and its outputs are the first arguments of the
    second. It keeps nothing that takes more memory than the weights do, so
    that weights stored in few bits stay so.
    """
    fixed = set()
    for node in module.graph.nodes:
        if node.op == "get_attr" or (
            _is_call(node)
            and not _writes(node)
            and fixed.issuperset(node.all_input_nodes)
            and _is_cheap_to_keep(node)
        ):
            fixed.add(node)
    kept = [
        node for node in fixed if any(user not in fixed for user in node.users)
    ]
    weights_part, step_part = fx.Graph(), fx.Graph()
    copies = {}
    for node in module.graph.nodes:
        if node in fixed:
            copies[node] = weights_part.node_copy(node, copies.__getitem__)
    weights_part.output([copies[node] for node in kept])
    copies = {node: step_part.placeholder(node.name) for node in kept}
    for node in module.graph.nodes:
        if node not in fixed:
            copies[node] = step_part.node_copy(node, copies.__getitem__)
    return (
        fx.GraphModule(module, weights_part),
        fx.GraphModule(module, step_part),
    )


def _is_cheap_to_keep(node):
    if node.target in VIEWS:
        return True
    value = _value(node)
    if not isinstance(value, torch.Tensor):
        return False
    read = sum(_value(source).nbytes for source in node.all_input_nodes)
    return value.nbytes <= max(read, SMALL)
