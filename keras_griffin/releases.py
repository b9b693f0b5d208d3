"""Whether this process runs the releases that the package needs."""

import importlib.metadata
import importlib.util
import sys

DISTRIBUTION = "keras-griffin"
# What a notebook may have imported before the package was installed into it.
# The backend's module joins them.
MODULES = ("numpy", "keras", "keras_hub")


def check_running(backend):
    """Looks at what was imported, and is older than what is needed.

    pip replaces files, not what a process holds of them. So a notebook that
    imported Keras and then installed this package goes on with its old Keras,
    and reads parts of the new one.

    Args:
        backend: str. Keras' backend, `"jax"` for instance.

    Raises:
        ImportError: if a module is older than needed, or another release of
            it is installed by now. It says whether to install or to restart.
    """
    from packaging.requirements import Requirement
    from packaging.version import Version

    try:
        lines = importlib.metadata.requires(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return  # a checkout on the path: nothing was installed with it
    needed = {
        each.name.replace("-", "_"): each
        for each in map(Requirement, lines)
        if each.marker is None or each.marker.evaluate({"extra": backend})
    }
    for name in (*MODULES, backend):
        running = getattr(sys.modules.get(name), "__version__", None)
        if running is None or name not in needed:
            continue
        wanted = needed[name]
        installed = _installed(wanted.name) or running
        rule = f"keras_griffin needs {wanted.name}{wanted.specifier}"
        if not wanted.specifier.contains(installed, prereleases=True):
            raise ImportError(
                f"{rule}. Received: {wanted.name} {installed}. Run `pip "
                f"install --upgrade '{wanted.name}{wanted.specifier}'`, then "
                "restart the session."
            )
        if Version(running).base_version != Version(installed).base_version:
            raise ImportError(
                f"{rule}, and one release of it in a process. Received: "
                f"{wanted.name} {running}, imported before {installed} was "
                "installed. Restart the session (in Colab: Runtime, Restart "
                "session), and import again."
            )


def import_triton_first(backend):
    """Imports Triton before KerasHub imports TensorFlow, on PyTorch with CUDA.

    Triton 3.7.0 crashes the process when it comes after TensorFlow 2.21. The
    kernels look whether it is too late: `kernels/triton_plan.py`.
    """
    if backend != "torch" or "tensorflow" in sys.modules:
        return
    import torch

    if torch.cuda.is_available() and importlib.util.find_spec("triton"):
        import triton  # noqa: F401


def _installed(name):
    """The release that is installed, or `None` if it has another name."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None  # tensorflow-cpu, for instance
