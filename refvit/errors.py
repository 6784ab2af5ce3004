"""Every error that refvit raises on purpose. A message says where, what was given, what was expected and what to do."""


class RefvitError(Exception):
    """Base of all of refvit's own errors.

    arguments: the parts of the message that are arguments of a Python call, name=value; the command line, where the same is
        called otherwise, puts its own spelling in their place
    """

    def __init__(self, message: object = "", *arguments: str) -> None:
        super().__init__(message)
        self.arguments = arguments


class ShapeError(RefvitError, ValueError):
    """An array or tensor has a shape that the operation cannot take."""


class ConfigError(RefvitError, ValueError):
    """A configuration, option or argument has a value that nothing can be done with."""


class ImageError(RefvitError, ValueError):
    """An input image is missing, unreadable, too large, or not what was promised."""


class WeightsError(RefvitError, ValueError):
    """A weights file is missing, corrupt, or belongs to another model."""


class UnknownModelError(RefvitError, LookupError):
    """No model, or no weights tag, of this name."""


class TraceError(RefvitError, TypeError):
    """Model code did something under tracing that a graph cannot hold."""


class GraphError(RefvitError, ValueError):
    """A graph breaks one of its invariants."""


class BackendError(RefvitError, RuntimeError):
    """A backend is unknown, or cannot be used on this machine."""


class UnsupportedError(RefvitError, NotImplementedError):
    """A backend lacks what was asked of it."""
