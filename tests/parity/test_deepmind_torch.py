"""Equal to `recurrentgemma.torch` from its state dict, in float32."""

import numpy as np
import pytest

from keras_griffin.checkpoints import deepmind
from keras_griffin.models.griffin_backbone import GriffinBackbone
from keras_griffin.models.griffin_causal_lm import GriffinCausalLM
from support import peers

pytest.importorskip("torch")
pytest.importorskip("recurrentgemma.torch")

TOLERANCE = 1e-5


def test_logits(record_error):
    peer = peers.DeepMindTorchGriffin(peers.GRIFFIN)
    model = GriffinCausalLM(GriffinBackbone(**peers.GRIFFIN))
    deepmind.load_torch_params(model.backbone, peer.state_dict)
    time = 13
    rows = ([13], [9], [5, 8], [3], [1, 12])
    segment_pos = np.concatenate(
        [peers.segment_positions(row, time) for row in rows]
    )
    token_ids = np.random.default_rng(0).integers(0, 40, (5, time))
    token_ids = token_ids.astype("int32")
    theirs = peer.logits(token_ids, segment_pos)
    ours = peers.our_outputs(model, peers.our_inputs(token_ids, segment_pos))
    real = segment_pos >= 0
    error = peers.relative_error(ours[real], theirs[real])
    record_error(error)
    assert error < TOLERANCE


def test_state_dict_is_exact():
    peer = peers.DeepMindTorchGriffin(peers.GRIFFIN)
    backbone = GriffinBackbone(**peers.GRIFFIN)
    deepmind.load_torch_params(backbone, peer.state_dict)
    exported = deepmind.to_torch_params(backbone)
    assert set(exported) == set(peer.state_dict)
    for name, tensor in peer.state_dict.items():
        np.testing.assert_array_equal(exported[name], tensor.numpy())
