from keras import ops

from keras_griffin.kernels.rg_lru import ops_rg_lru

IMPLEMENTATIONS = ("auto", "ops")


def rg_lru(
    x,
    recurrence_gate_kernel,
    recurrence_gate_bias,
    input_gate_kernel,
    input_gate_bias,
    recurrence_param,
    phase_param=None,
    reset=None,
    padding_mask=None,
    initial_state=None,
    implementation="auto",
):
    """The real-gated linear recurrent unit, RG-LRU (complex: CG-LRU)."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"`implementation` must be one of {IMPLEMENTATIONS}. "
            f"Received: implementation={implementation!r}"
        )

    def tensor(t, dtype=None):
        return None if t is None else ops.convert_to_tensor(t, dtype)

    x = tensor(x)
    if initial_state is None:
        initial_state = ops.zeros((ops.shape(x)[0], x.shape[2]), "float32")
    h, final_state = ops_rg_lru.rg_lru(
        x,
        tensor(recurrence_gate_kernel),
        tensor(recurrence_gate_bias),
        tensor(input_gate_kernel),
        tensor(input_gate_bias),
        tensor(recurrence_param),
        tensor(phase_param),
        tensor(reset, "bool"),
        tensor(padding_mask, "bool"),
        ops.cast(tensor(initial_state), "float32"),
    )
    return ops.cast(h, x.dtype), final_state
