"""torch.export's warnings and log messages that do not concern the model."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_OWN_WARNINGS = (
    r"The tensor attributes? .* (was|were) assigned during export",
    r"A model attribute .* requires gradient",
)
"""Warnings about every LSTM and GRU, and about attributes that skyfx looks after itself."""

_OWN_LOGS = {
    "torch._subclasses.fake_tensor": ("failed while attempting", "fake tensor raised TypeError"),
    "torch.fx.experimental.symbolic_shapes": ("Unable to find user code",),
}
"""Log messages about an attempt to trace that another attempt follows, by logger."""


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Within it, torch.export tells of the model's own code, and not of what skyfx knows."""

    def concerns_the_model(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_OWN_LOGS[record.name])

    loggers = [logging.getLogger(name) for name in _OWN_LOGS]
    for logger in loggers:
        logger.addFilter(concerns_the_model)
    try:
        with warnings.catch_warnings():
            for message in _OWN_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(concerns_the_model)
