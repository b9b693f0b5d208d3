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

# Bytes that may be kept of what weights alone decide, beside the weights: float
# matrices in oneDNN's own layout, or what was stored in few bits. Past them
# each step computes anew what takes more memory than the weights.
MAX_KEPT = 2**30

# Bytes that a value computed once may have, whatever it comes from.
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
    are recorded. At each `start` weights that have changed are read anew, so
    that training between two texts is seen.

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
        self._of_weights = None, None

    def start(self):
        """Returns the function for the weights as they are now."""
        current = {}

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
                if key not in current:
                    current[key] = self._weights_values(key, weights_part)
                outputs = step_part(*current[key], *leaves)
            return pytree.tree_unflatten(outputs, output_spec)

        return step

    def _weights_values(self, key, weights_part):
        constants = [
            operator.attrgetter(node.target)(weights_part)
            for node in weights_part.graph.nodes
            if node.op == "get_attr"
        ]
        # Of one recording at a time: each would take as much memory.
        stamp = key, [(x.data_ptr(), x._version) for x in constants]
        made_of, values = self._of_weights
        if made_of != stamp:
            self._of_weights = None, None
            values = weights_part()
            self._of_weights = stamp, values
        return values


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
            _pack_matrices(module.graph)
        _drop_reshapes(module.graph)
        _merge_equal(module)
        module.graph.eliminate_dead_code()
        _fuse_products(module.graph)
    weights_part, step_part = _split(module)
    return weights_part, step_part.forward, output_spec


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


def _pack_matrices(graph):
    """`x W` of float32 as oneDNN's product with `W` in its own layout.

    On an AMD CPU 2 rows and a matrix of 512 x 1536 take 98 us in place of 222
    by MKL (one thread).
    """
    if not torch.backends.mkldnn.is_available():
        return
    fixed = _fixed(graph, lambda node: True)
    products = [
        node
        for node in graph.nodes
        if _is_call(node)
        and node.target is aten.mm.default
        and node.args[1] in fixed
        and node not in fixed
        and _value(node).dtype == torch.float32
    ]
    matrices = {node.args[1] for node in products}
    if sum(_value(matrix).nbytes for matrix in matrices) > MAX_KEPT:
        return
    for node in products:
        x, matrix = node.args
        rows = _value(x).shape[0]

        def call(target, value, *args):
            new = graph.call_function(target, args)
            new.meta["val"] = value
            return new

        with graph.inserting_before(node):
            transposed = _value(matrix).t()
            packed = call(
                torch.ops.mkldnn._reorder_linear_weight.default,
                transposed,
                call(aten.t.default, transposed, matrix),
                rows,
            )
            # With an axis of time of its own, as most of what comes and goes.
            product = call(
                torch.ops.mkldnn._linear_pointwise.default,
                _value(node).unsqueeze(1),
                call(aten.unsqueeze.default, _value(x).unsqueeze(1), x, 1),
                packed,
                None,
                "none",
                [],
                "",
            )
            product = call(aten.squeeze.dim, _value(node), product, 1)
        node.replace_all_uses_with(product)


def _fuse_products(graph):
    """A bias, and a GELU after it, as part of oneDNN's product."""
    for node in graph.nodes:
        if node.target is not torch.ops.mkldnn._linear_pointwise.default:
            continue
        x, packed, bias, *_ = node.args
        user = _only_user(node, aten.add.Tensor)
        if user is not None and user.args[0] is node:
            addend = user.args[1]
            if (
                isinstance(addend, fx.Node)
                and addend.op == "get_attr"
                and _value(addend).shape == _value(node).shape[-1:]
                and not user.kwargs
            ):
                bias = addend
                node.args = (x, packed, bias, *node.args[3:])
                user.replace_all_uses_with(node)
                graph.erase_node(user)
        user = _only_user(node, aten.gelu.default)
        if user is not None and user.kwargs.get("approximate") == "tanh":
            node.args = (x, packed, bias, "gelu", [], "tanh")
            user.replace_all_uses_with(node)
            graph.erase_node(user)


def _only_user(node, target):
    users = list(node.users)
    if len(users) == 1 and users[0].target is target:
        return users[0]
    return None


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
    second. Past `MAX_KEPT` it keeps nothing that takes more memory than the
    weights do, so that weights stored in few bits stay so.
    """
    fixed = _fixed(module.graph, lambda node: True)
    kept = _kept(fixed)
    made = sum(_bytes(node) for node in kept if node.op != "get_attr")
    if made > MAX_KEPT:
        fixed = _fixed(module.graph, _is_cheap_to_keep)
        kept = _kept(fixed)
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


def _fixed(graph, is_allowed):
    """The nodes that weights alone decide, of those that are allowed."""
    fixed = {}
    for node in graph.nodes:
        if node.op == "get_attr" or (
            _is_call(node)
            and not _writes(node)
            and all(source in fixed for source in node.all_input_nodes)
            and is_allowed(node)
        ):
            fixed[node] = True
    return fixed


def _kept(fixed):
    """Those of them that others need."""
    return [
        node for node in fixed if any(user not in fixed for user in node.users)
    ]


def _bytes(node):
    value = _value(node)
    if node.target in VIEWS or not isinstance(value, torch.Tensor):
        return 0
    return value.nbytes


def _is_cheap_to_keep(node):
    if node.target in VIEWS:
        return True
    if not isinstance(_value(node), torch.Tensor):
        return False
    read = sum(_value(source).nbytes for source in node.all_input_nodes)
    return _bytes(node) <= max(read, SMALL)
