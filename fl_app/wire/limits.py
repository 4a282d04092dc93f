"""The limits of what may arrive over the wire, in one place; files and images have theirs where they are read."""

MAX_EXITS = 64
"""The largest number of exits, the last one included, that a reply may describe."""

ID_CHARACTERS = 128
"""Of a client's id."""

WORDS_CHARACTERS = 300
"""Of a status or another sentence."""

SPEC_CHARACTERS = 100_000
"""Of a network's specification as JSON."""

CLASSES_CHARACTERS = 10_000_000
"""Of all class names of a model as JSON, and of the calibration of its exits."""

CLASS_NAME_CHARACTERS = 256
"""Of one class name."""

HEADER_BYTES = 256
"""The most that numpy's header may add to an array's data."""

MAX_VALUE = 1e6
"""The largest number, whatever its sign, that an exit may hold; trained weights and statistics are far below."""

FEWEST_TEST_SAMPLES = 5
"""A mean over fewer samples would say something about each of them: no figure over fewer leaves a client."""
