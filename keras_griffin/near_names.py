"""What a mistyped name was meant to be. Needs no Keras."""

import difflib
import inspect


def near_names(name, names):
    """Returns the known names near to `name`, the nearest first."""
    return difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)


def did_you_mean(name, names):
    """Returns a sentence with the known names near to `name`, or `""`."""
    near = near_names(name, names)
    return f"Did you mean {', '.join(near)}? " if near else ""


def check_arguments(owner, given, known):
    """Raises for arguments that would be dropped without a word.

    Args:
        owner: str. What they were given to.
        given: names.
        known: names.

    Raises:
        ValueError: with the nearest known name.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            raise ValueError(
                f"{owner} takes known arguments only. Received: "
                f"{name!r}. {did_you_mean(name, known)}It takes "
                f"{', '.join(known)}."
            )


def arguments_of(cls, base):
    """The arguments of a class that `cls` has up to `base`, by name."""
    names = set()
    for each in cls.__mro__[: cls.__mro__.index(base) + 1]:
        names |= {
            name
            for name, parameter in inspect.signature(
                each.__init__
            ).parameters.items()
            if parameter.kind
            not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        }
    return names - {"self"}


def check_arguments_of(cls, given):
    """Raises for arguments that a layer or preprocessor does not have.

    Args:
        cls: a class that derives from `keras.layers.Layer`.
        given: names.

    Raises:
        ValueError: with the nearest known name.
    """
    import keras

    known = arguments_of(cls, keras.layers.Layer)
    check_arguments(cls.__name__, given, known | {"config_file"})
