"""Keep the libraries' own bars and warnings out of the output."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Switch off the bars of diffusers and transformers, which flash by once a component, and one warning."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = (diffusers_logging, transformers_logging)
    shown = [logger.is_progress_bar_enabled() for logger in loggers]
    for logger in loggers:
        logger.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch_dtype")  # its successor is unknown to older versions
            yield
    finally:
        for logger, was_shown in zip(loggers, shown, strict=True):
            if was_shown:
                logger.enable_progress_bar()
