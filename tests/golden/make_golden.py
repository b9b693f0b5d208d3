"""Writes griffin.npz: what DeepMind's JAX implementation computes.

Run from the root of the repository, with recurrentgemma installed:

    JAX_PLATFORMS=cpu python tests/golden/make_golden.py

Origin: recurrentgemma 1.0.1, `recurrentgemma.jax`, float32 on a CPU, LINEAR
scan, jax 0.10.2. Parameters and tokens are random from SEED; nothing of a
trained checkpoint is in the file.
"""

import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from support import peers  # noqa: E402

SEED = 2402_19427
SETTINGS = {
    "vocabulary_size": 24,
    "num_layers": 4,
    "hidden_dim": 16,
    "intermediate_dim": 20,
    "num_query_heads": 2,
    "head_dim": 8,
    "recurrent_dim": 24,
    "block_types": ["recurrent", "recurrent", "local_attention"],
    "attention_window_size": 3,
    "num_gate_blocks": 2,
    "scale_embeddings": True,
    "final_logit_soft_cap": 5.0,
}
TIME = 12
# One document, one after left padding, and two packed rows.
ROWS = ([12], [7], [1, 2, 9], [5, 7])


def main():
    rng = np.random.default_rng(SEED)
    peer = peers.DeepMindGriffin(SETTINGS, seed=SEED)
    token_ids = rng.integers(0, 24, (len(ROWS), TIME)).astype("int32")
    segment_pos = np.concatenate(
        [peers.segment_positions(row, TIME) for row in ROWS]
    )
    logits = peer.logits(token_ids, segment_pos)
    cotangent = rng.standard_normal(logits.shape).astype("float32")
    cotangent[segment_pos < 0] = 0
    gradients = peer.gradients(token_ids, segment_pos, cotangent)

    layer = peers.DeepMindComplexRGLRU(8, num_heads=2, seed=SEED)
    x = rng.standard_normal((len(ROWS), TIME, 8)).astype("float32")
    y, state = layer.apply(x, segment_pos)

    arrays = {
        "settings": json.dumps(SETTINGS),
        "token_ids": token_ids,
        "segment_pos": segment_pos,
        "logits": logits,
        "cotangent": cotangent,
        "complex_x": x,
        "complex_y": y,
        "complex_state": state,
    }
    for prefix, tree in (
        ("params/", peer.params),
        ("gradients/", gradients),
        ("complex_params/", layer.params),
    ):
        for name, leaf in peers.flatten(tree).items():
            arrays[prefix + name] = leaf
    np.savez_compressed(pathlib.Path(__file__).parent / "griffin.npz", **arrays)


if __name__ == "__main__":
    main()
