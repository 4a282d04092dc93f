"""Text from a file or from somebody else, as it may be printed on a terminal."""


def printable(text: str) -> str:
    """Return `text` with a replacement character for each that would steer a terminal instead of being shown."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
