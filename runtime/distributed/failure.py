"""An error as a message: the name of its class and its text, to be raised in another process.

Only the classes listed here are ever made from a name; nothing is unpickled or evaluated.
"""

from skyfx.solver import errors

_BUILTINS = (MemoryError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError)

_CLASSES: dict[str, type[Exception]] = {
    **{name: getattr(errors, name) for name in errors.__all__},
    **{kind.__name__: kind for kind in _BUILTINS},
}


def describe(error: BaseException) -> tuple[str, str]:
    """The name of the nearest listed class, and the text; it names the class if that is another."""
    nearest = next(
        (kind for kind in type(error).__mro__ if _CLASSES.get(kind.__name__) is kind),
        errors.SkyfxError,
    )
    own = "" if type(error) is nearest else type(error).__name__
    return nearest.__name__, ": ".join(part for part in (own, str(error)) if part)


def restore(rank: int, name: str, text: str) -> Exception:
    """The error of another process, from what `describe` returned there."""
    return _CLASSES[name](f"rank {rank}: {text}")
