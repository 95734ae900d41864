"""The errors that a user can meet: each says what was expected, what came, and what to do.

One family: `except ct.CircuitTraceError` catches them all, and each is also the built-in error
that a reader would expect (a `ValueError` for a bad value, a `TypeError` for a model of no use).
"""


class CircuitTraceError(Exception):
    """Anything this library refuses to do, with the reason."""

    __str__ = Exception.__str__  # a KeyError would show its message quoted


class AnatomyError(CircuitTraceError, TypeError):
    """A model whose computation this library cannot reproduce."""


class EdgeError(CircuitTraceError, KeyError, ValueError):
    """An edge or a node that the model's graph does not have."""


class MaskError(CircuitTraceError, ValueError):
    """Masks or scores of a wrong key, shape or value."""


class InputError(CircuitTraceError, ValueError):
    """Prompts, batches or options that do not fit the model or each other."""


class NoTraceError(CircuitTraceError, RuntimeError):
    """A record was asked for that no pass has left."""


class FigureError(CircuitTraceError, ValueError):
    """A picture that cannot be drawn or written as asked."""


class FormatError(CircuitTraceError, ValueError):
    """A file that is not what it should be, or cannot hold what it is asked to."""


class RecordWarning(UserWarning):
    """What the sources of a pass wrote does not add up to what its destinations read."""


class FormatWarning(UserWarning):
    """A file holds something that is not quite what this library means by it."""


class MaskWarning(UserWarning):
    """Masks that may not be meant as they are."""


class EdgeWarning(UserWarning):
    """A name of edges or nodes that may mean fewer than it seems to."""


class DataWarning(UserWarning):
    """Prompts or answers that can be run, but hardly are what was meant."""
