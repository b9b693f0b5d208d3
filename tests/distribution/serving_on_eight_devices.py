"""What an engine on 8 CPU devices serves, beside `generate` on one.

In a process of its own, as the number of devices is set before JAX starts.
Writes a JSON of names to numbers to the file that is its argument.
"""

import json
import sys

import numpy as np
from distribution.eight_devices import make_model
from distribution.eight_devices import parallel

from keras_griffin import serving
from support.models import tokens

MESHES = ("batch 2, model 4", "batch 8")
LENGTHS = (3, 40, 9, 1, 14, 5, 30, 11, 40, 40)
NEW = 10  # tokens
SETTINGS = {"stop_token_ids": None, "max_new_tokens": NEW}
WAYS = ({"temperature": 0}, {"seed": 5, "top_p": 0.8, "presence_penalty": 1.0})


def alone(model, prompt, way):
    outputs = model.generate(
        {"token_ids": prompt[None]},
        strip_prompt=True,
        **{"top_p": 1.0, **SETTINGS, **way},
    )
    return outputs["token_ids"][0, :NEW].tolist()


def count_compilations():
    """A list that grows with each program that JAX compiles."""
    import jax

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: (
            compiled.append(name) if "backend_compile" in name else None
        )
    )
    return compiled


def main():
    prompts = [tokens(1, n, seed=n)[0] for n in LENGTHS]
    model = make_model()
    expected = [[alone(model, p, way) for p in prompts] for way in WAYS]
    results = {}
    compiled = count_compilations()
    for mesh in MESHES:
        with parallel(mesh):
            model = make_model()
            with serving.Engine(model, max_rows=8, prefill_chunk=16) as engine:
                compiled.clear()
                requests = [
                    [engine.submit(p, **SETTINGS, **way) for p in prompts]
                    for way in WAYS
                ]
                found = [
                    [list(r.result()[0].token_ids) for r in of_way]
                    for of_way in requests
                ]
                hits = engine.statistics()["prefix_cache_hits"]
        results[mesh] = {
            "other texts": int((np.array(found) != expected).any(-1).sum()),
            "hits": hits,
            "compiled": len(compiled),
        }
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
