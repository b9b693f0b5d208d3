"""A step of a model on PyTorch, recorded once and run without Keras around it.

Eager PyTorch decodes at the speed of Python: a token of a small model takes
some hundred operations, and choosing them costs several times what they cost.
"""

import collections

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.dialect.common import cse_pass
from torch.utils import _pytree as pytree

# Recording takes about as long as so many steps, and pays after as many.
STEPS_BEFORE_RECORDING = 32

# Bytes that may be kept of what weights alone decide, as weights unfolded from
# few bits. Past them only what takes no more memory than its sources is kept.
MAX_KEPT = 2**30


class RecordedStep:
    """A function of tensors and of weights that it closes over.

    After some calls with arguments of the same shapes its operations are
    recorded. Under `torch.autocast` it stays eager: the casts would be part
    of the record.

    Args:
        function: callable from nested structures of tensors to one of
            tensors, without side effects and random numbers. What it does may
            depend on the shapes and dtypes of the tensors, not on their
            values. It may write to what it made, if not of weights alone.
    """

    def __init__(self, function):
        self._function = torch.no_grad()(function)
        self._calls = collections.Counter()
        self._recordings = {}
        self._of_weights = {}

    def read_weights_anew(self):
        """Forgets what was computed from the weights."""
        self._of_weights = {}

    def __call__(self, *args):
        leaves, spec = pytree.tree_flatten(args)
        if torch.is_autocast_enabled(leaves[0].device.type):
            return self._function(*args)
        key = spec, tuple((x.shape, x.dtype, x.device) for x in leaves)
        if key not in self._recordings:
            self._calls[key] += 1
            if self._calls[key] <= STEPS_BEFORE_RECORDING:
                return self._function(*args)
            self._recordings[key] = _record(self._function, leaves, spec)
        weights_part, step_part, output_spec = self._recordings[key]
        with torch.no_grad():
            of_weights = self._of_weights.get(key)
            if of_weights is None:
                self._of_weights[key] = of_weights = weights_part()
            outputs = step_part(*of_weights, *leaves)
        return pytree.tree_unflatten(outputs, output_spec)


def _record(function, leaves, spec):
    """Two functions, and the structure of what the second one returns.

    The first computes what weights alone decide; its outputs are the first
    arguments of the second.
    """
    output_spec = None

    def flat(*leaves):
        nonlocal output_spec
        outputs = function(*pytree.tree_unflatten(leaves, spec))
        outputs, output_spec = pytree.tree_flatten(outputs)
        return outputs

    with torch.inference_mode(False), torch.no_grad():
        module = make_fx(flat)(*leaves)
        # What is written in place becomes a new value.
        module = make_fx(torch.func.functionalize(module))(*leaves)
    merge_equal = cse_pass.CSEPass(cse_pass.get_CSE_banned_ops())
    module = merge_equal(module).graph_module
    nodes = module.graph.nodes
    fixed = _fixed(nodes)
    if sum(_bytes(node) for node in _needed(fixed)) > MAX_KEPT:
        fixed = _fixed(nodes, lambda node: _bytes(node) <= _bytes_read(node))
    needed = _needed(fixed)
    weights_part, step_part = fx.Graph(), fx.Graph()
    copies = {}
    for node in fixed:
        copies[node] = weights_part.node_copy(node, copies.__getitem__)
    weights_part.output([copies[node] for node in needed])
    copies = {node: step_part.placeholder(node.name) for node in needed}
    for node in nodes:
        if node not in fixed:
            copies[node] = step_part.node_copy(node, copies.__getitem__)
    for node in (*weights_part.nodes, *step_part.nodes):
        node.meta.clear()  # It has tensors.
    return (
        fx.GraphModule(module, weights_part).forward,
        fx.GraphModule(module, step_part).forward,
        output_spec,
    )


def _fixed(nodes, is_allowed=lambda node: True):
    """The nodes that weights alone decide, of those that are allowed."""
    fixed = {}
    for node in nodes:
        if node.op == "get_attr" or (
            node.op == "call_function"
            and all(source in fixed for source in node.all_input_nodes)
            and is_allowed(node)
        ):
            fixed[node] = True
    return fixed


def _needed(fixed):
    """Those of them that others need."""
    return [
        node for node in fixed if any(user not in fixed for user in node.users)
    ]


def _bytes(node):
    """Memory that a node's value takes beside that of its sources."""
    if node.op == "get_attr" or getattr(node.target, "is_view", False):
        return 0
    values = pytree.tree_leaves(node.meta.get("val"))
    return sum(x.nbytes for x in values if isinstance(x, torch.Tensor))


def _bytes_read(node):
    return sum(source.meta["val"].nbytes for source in node.all_input_nodes)
