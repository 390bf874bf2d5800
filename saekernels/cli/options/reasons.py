"""transformers, imported where it is needed, and what its exceptions say."""

from __future__ import annotations

from typing import Any

from saekernels.errors import first_line, missing_extra


def first_reason(error: Exception) -> str:
    """What an exception says; with its type where that alone says what it is about."""
    told = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
    return first_line(error) if told else f"{type(error).__name__}: {first_line(error)}"


def transformers() -> Any:
    """The package. Raises InputError where it is missing."""
    try:
        import transformers as package
    except ImportError as error:
        raise missing_extra("transformers", "loading a model") from error
    # Missing weights are an error here, so the long reports say nothing new.
    package.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    package.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return package
