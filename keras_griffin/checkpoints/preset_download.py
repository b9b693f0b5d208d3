"""Downloads of presets, and what to do when a hub refuses."""

import contextlib

HF_PREFIX = "hf://"
KAGGLE_PREFIX = "kaggle://"

# What a Hub repository in Hugging Face's format is read from.
# The last two say whether there are turns.
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
HF_CONFIG_FILES = (
    "config.json",
    "tokenizer.model",
    TOKENIZER_CONFIG_FILE,
    CHAT_TEMPLATE_FILE,
)
HF_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
REFUSED = (401, 403)  # HTTP: not logged in, not allowed
NOT_FOUND = 404
HF_LOGIN = (
    "set HF_TOKEN to a token of https://huggingface.co/settings/tokens (or run "
    "`hf auth login`)"
)
KAGGLE_LOGIN = (
    "set KAGGLE_USERNAME and KAGGLE_KEY to those of a token of "
    "https://www.kaggle.com/settings"
)


def hf_file(handle, name):
    """Returns the path of one file of a Hugging Face repository.

    Args:
        handle: str. `"hf://owner/name"`.
        name: str.

    Returns:
        The path in the cache, or `None` if the repository has no such file.

    Raises:
        PermissionError, ConnectionError, FileNotFoundError: see `explained`.
    """
    import huggingface_hub
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with explained(handle):
        try:
            return huggingface_hub.hf_hub_download(
                handle.removeprefix(HF_PREFIX), name
            )
        except RemoteEntryNotFoundError:
            return None


def hf_folder(handle, patterns=None):
    """Returns the folder of a Hugging Face repository, downloaded.

    Args:
        handle: str. `"hf://owner/name"`.
        patterns: sequence of file name patterns. Defaults to `None`: all.

    Raises:
        PermissionError, ConnectionError, FileNotFoundError: see `explained`.
    """
    import huggingface_hub

    with explained(handle):
        return huggingface_hub.snapshot_download(
            handle.removeprefix(HF_PREFIX),
            allow_patterns=None if patterns is None else list(patterns),
        )


def kaggle_folder(handle):
    """Returns the folder of a Kaggle model, downloaded.

    Args:
        handle: str. `"kaggle://owner/model/framework/variation"`.

    Raises:
        PermissionError, ConnectionError, FileNotFoundError: see `explained`.
    """
    import kagglehub

    with explained(handle):
        return kagglehub.model_download(handle.removeprefix(KAGGLE_PREFIX))


def config_file(handle):
    """Returns the path of a hub's `config.json`, downloaded alone.

    Args:
        handle: str. `"hf://..."` or `"kaggle://..."`.

    Returns:
        The path in the cache, or `None` if the model has no such file.

    Raises:
        ValueError: for a handle of another hub.
        PermissionError, ConnectionError, FileNotFoundError: see `explained`.
    """
    if handle.startswith(HF_PREFIX):
        return hf_file(handle, "config.json")
    if handle.startswith(KAGGLE_PREFIX):
        import kagglehub

        name = handle.removeprefix(KAGGLE_PREFIX)
        with explained(handle):
            return kagglehub.model_download(name, path="config.json")
    raise ValueError(
        f"An address must begin with {HF_PREFIX} or {KAGGLE_PREFIX}. "
        f"Received: {handle!r}. Give one of these, a name or a folder."
    )


@contextlib.contextmanager
def explained(handle):
    """Says what to do about a hub's refusal: which page, which variable.

    What nobody here can act on, the hub says itself: its error goes on.

    Args:
        handle: str. `"hf://..."` or `"kaggle://..."`.

    Raises:
        PermissionError: if the licence was not accepted, or there is no token.
        ConnectionError: if the hub cannot be reached and nothing is cached.
        FileNotFoundError: if there is no such model.
    """
    hub, _, name = handle.partition("://")
    if hub == "kaggle":
        import requests
        from kagglehub import exceptions

        page = "https://www.kaggle.com/models/" + "/".join(name.split("/")[:2])
        login = KAGGLE_LOGIN
        without_token = (
            exceptions.UnauthenticatedError,
            exceptions.CredentialError,
        )
        unreachable = requests.ConnectionError
    else:
        from huggingface_hub import errors

        page = f"https://huggingface.co/{name}"
        login = HF_LOGIN
        without_token = ()  # an HTTP error, too
        unreachable = (
            errors.LocalEntryNotFoundError,
            errors.OfflineModeIsEnabled,
        )
    try:
        yield
    except unreachable as error:
        raise ConnectionError(
            "A model must be downloaded once before it is used offline. "
            f"Received: {handle!r}, which is not in the cache, while the hub "
            f"cannot be reached ({_first_line(error)}). Connect, unset "
            "HF_HUB_OFFLINE if it is set, or give the path of a folder."
        ) from error
    except (OSError, *without_token) as error:
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if isinstance(error, without_token) or status in REFUSED:
            raise PermissionError(
                "A gated model must be unlocked once, and the download must "
                f"say who asks. Received: {handle!r}, refused "
                f"({_first_line(error)}). Accept the licence at {page}, then "
                f"{login}."
            ) from error
        if status == NOT_FOUND:
            raise FileNotFoundError(
                f"A handle must name an existing model. Received: {handle!r}, "
                f"unknown ({_first_line(error)}). Correct it; `keras-griffin "
                "presets` lists the built-in names."
            ) from error
        raise


@contextlib.contextmanager
def read_by_tensorflow(path):
    """Says so if TensorFlow, by which KerasHub reads `gs://`, cannot read.

    Raises:
        ConnectionError: for a folder that is not there or cannot be reached.
    """
    try:
        from tensorflow.errors import OpError
    except ImportError:  # KerasHub says that it is needed
        yield
        return
    try:
        yield
    except OpError as error:
        raise ConnectionError(
            "A folder in the cloud must exist and be reached. Received: "
            f"{path!r}, which could not be read ({_first_line(error)}). "
            "Check the address and the connection, or copy the folder to this "
            "machine."
        ) from error


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
