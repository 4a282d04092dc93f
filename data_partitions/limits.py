"""How large data may be: every limit on what is read from files, in one place.

They are far above what the paper's data needs, and low enough that a file made to exhaust memory is refused instead.
"""

MAX_ID_LENGTH = 128
"""Characters of a user's id."""

MAX_IMAGE_PIXELS = 2**26
"""Width times height of one image, known before it is decoded: 67 megapixels, at most 256 MiB decoded."""

MAX_IMAGE_BYTES = 2**26
"""One encoded image."""

MAX_USER_BYTES = 2**32
"""All of a user's images decoded, or all that are loaded at once."""

MAX_ROWS = 2**25
"""Rows of all parquet files together; ImageNet-21k has 14 million."""

MAX_COLUMN_BYTES = 2**31
"""What is held at once of a decompressed parquet column: ids and labels in whole, images a row group at a time."""

MAX_JSON_BYTES = 2**31
"""One JSON file."""

MAX_LABELS_BYTES = 2**24
"""A labels file beside watched frames: about half a million rows."""

MAX_CLASSES = 100_000
"""Classes of a data set."""
