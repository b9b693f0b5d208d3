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


def hf_file(handle, name):
    """Returns the path of one file of a Hugging Face repository.

    Args:
        handle: str. `"hf://owner/name"`.
        name: str.

    Returns:
        The path in the cache, or `None` if the repository has no such file.

    Raises:
        PermissionError, ConnectionError, FileNotFoundError, ValueError: see
            `explained`.
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
        PermissionError, ConnectionError, FileNotFoundError, ValueError: see
            `explained`.
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
        PermissionError, ConnectionError, FileNotFoundError, ValueError: see
            `explained`.
    """
    import kagglehub

    with explained(handle):
        return kagglehub.model_download(handle.removeprefix(KAGGLE_PREFIX))


@contextlib.contextmanager
def explained(handle):
    """Says what to do about a hub's refusal: which page, which variable.

    Args:
        handle: str. `"hf://..."` or `"kaggle://..."`.

    Raises:
        PermissionError: if the licence was not accepted, or there is no token.
        ConnectionError: if the hub cannot be reached and nothing is cached.
        FileNotFoundError: if there is no such model.
        ValueError: if it is no handle.
    """
    on_kaggle = handle.startswith(KAGGLE_PREFIX)
    with _explained_kaggle(handle) if on_kaggle else _explained_hf(handle):
        yield


@contextlib.contextmanager
def _explained_hf(handle):
    from huggingface_hub import errors

    repository = handle.removeprefix(HF_PREFIX)
    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(
            'A Hugging Face handle must be "hf://owner/name". Received: '
            f"{handle!r} ({error}). Correct it."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as e:
        raise ConnectionError(
            "A model must be downloaded once before it is used offline. "
            f"Received: {handle!r}, which is not in the cache, while Hugging "
            "Face cannot be reached. Connect and unset HF_HUB_OFFLINE, or give "
            "the path of a folder."
        ) from e
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if isinstance(error, errors.GatedRepoError) or status in REFUSED:
            raise _refused(
                handle,
                f"https://huggingface.co/{repository}",
                "set HF_TOKEN to a token of "
                "https://huggingface.co/settings/tokens (or run `hf auth "
                "login`)",
                error,
            ) from error
        raise _unavailable(handle, status, error) from error


@contextlib.contextmanager
def _explained_kaggle(handle):
    import requests
    from kagglehub import exceptions

    owner_and_model = "/".join(
        handle.removeprefix(KAGGLE_PREFIX).split("/")[:2]
    )
    page = f"https://www.kaggle.com/models/{owner_and_model}"
    login = (
        "set KAGGLE_USERNAME and KAGGLE_KEY to those of a token of "
        "https://www.kaggle.com/settings"
    )
    try:
        yield
    except (exceptions.UnauthenticatedError, exceptions.CredentialError) as e:
        raise _refused(handle, page, login, e) from e
    except requests.HTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in REFUSED:
            raise _refused(handle, page, login, error) from error
        raise _unavailable(handle, status, error) from error
    except requests.ConnectionError as error:
        raise ConnectionError(
            "A model must be downloaded before it is loaded. Received: "
            f"{handle!r}, and Kaggle cannot be reached ({error}). Connect, or "
            "give the path of a folder."
        ) from error


def _refused(handle, page, login, error):
    return PermissionError(
        "A gated model must be unlocked once, and the download must say who "
        f"asks. Received: {handle!r}, refused ({_first_line(error)}). Accept "
        f"the licence at {page}, then {login}."
    )


def _unavailable(handle, status, error):
    if status == NOT_FOUND:
        return FileNotFoundError(
            f"A handle must name an existing model. Received: {handle!r}, "
            f"unknown ({_first_line(error)}). Correct it; `keras-griffin "
            "presets` lists the built-in names."
        )
    return ConnectionError(
        f"The hub must answer. Received: {handle!r}, failed with "
        f"{status} ({_first_line(error)}). Try again later."
    )


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
