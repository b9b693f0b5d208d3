"""Counts what a call passes through: `python tests/support/walk.py`.

Prints one line of JSON: the files and functions of this package that
`generate` and `fit` enter in a new process, and the frames from `RGLRU.mix` to
the loop over time, both included. `--list` names them. Pallas kernels are left
out: JAX traces them for other platforms and drops them on this one.
"""

import json
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
OURS = tuple(
    str(ROOT / folder) + "/" for folder in ("keras_griffin", "kernels")
)
LOOP = "/linear_scan/loop_"


def walk(function):
    """Runs it; returns `{(file, function)}` and the most frames to the loop."""
    entered, depths = set(), [0]

    def hook(frame, event, _):
        file = frame.f_code.co_filename
        ours = file.startswith(OURS) and "/pallas_" not in file
        if event == "call" and ours:
            name = str(Path(file).relative_to(ROOT))
            entered.add((name, frame.f_code.co_qualname))
            if LOOP in file and frame.f_code.co_name == "loop":
                depths.append(frames_from_layer(frame))

    threading.setprofile(hook)  # for threads to come
    sys.setprofile(hook)
    try:
        function()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return entered, max(depths)


def frames_from_layer(frame):
    """Frames of ours from `RGLRU.mix`, it included, to this one."""
    frames = 0
    while frame is not None:
        frames += frame.f_code.co_filename.startswith(OURS)
        if frame.f_code.co_qualname == "RGLRU.mix":
            return frames
        frame = frame.f_back
    return 0  # a gradient, which the backend calls


def main():
    import keras_griffin

    model = keras_griffin.GriffinCausalLM.from_preset("griffin_shakespeare_en")
    texts = ["To be, or not to be"] * 2
    calls = {
        "generate": lambda: model.generate("ROMEO:", max_new_tokens=4),
        "fit": lambda: model.fit(texts, batch_size=2, verbose=0),
    }
    counts = {}
    for name, call in calls.items():
        entered, depth = walk(call)
        files = sorted({file for file, _ in entered})
        counts[name] = {
            "files": len(files),
            "functions": len(entered),
            "frames": depth,
        }
        if "--list" in sys.argv:
            for file in files:
                functions = sorted(f for where, f in entered if where == file)
                print(f"{name}: {file}: {', '.join(functions)}")
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
