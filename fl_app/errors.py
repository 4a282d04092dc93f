"""What can go wrong with a run over Flower: one sentence each, for a person to read.

AppError
 ├─ RunConfigError       an unknown run-config key, a wrong type, a value out of range
 ├─ ModelFitError        the model was made for other data
 ├─ WireError            a message holds something that may not travel, or lacks something that must
 └─ RunFailedError       the run ended without the replies it needs; says where its log lies
"""


class AppError(ValueError):
    """Base of all errors of the Flower app that a user can cause; its text is one sentence."""


class RunConfigError(AppError):
    """A run-config key is unknown, or its value has the wrong type or is out of range."""


class ModelFitError(AppError):
    """The model was made for other classes, or for images of another shape."""


class WireError(AppError):
    """A message holds something that may not travel, or lacks something that must."""


class RunFailedError(AppError):
    """The run ended without the replies that it needs."""
