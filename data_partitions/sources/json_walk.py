"""A walk through JSON text that finds where values lie without parsing them, for files too large to hold as floats."""

import json
import re
from collections.abc import Iterator
from typing import Any

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_KEY = re.compile(rb'\s*("(?:[^"\\]|\\.)*")\s*:\s*', re.DOTALL)
_STRUCTURE = re.compile(rb'["{}\[\]]')
_SCALAR_END = re.compile(rb"[,}]")
_SEPARATOR = re.compile(rb"\s*([,}])")
_OPENING = re.compile(rb"\s*\{\s*(\})?")
_END_OF_NUMBERS = re.compile(rb"\]\s*\]")
_NO_NUMBERS = re.compile(rb"\[\s*\]")


class JsonWalk:
    """A position within JSON text that moves forward value by value.

    Args:
        data: the text, UTF-8.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def members(self) -> Iterator[str]:
        """Yield the keys of the object here; for each, the caller moves over its value by one of the other methods.

        Raises:
            ValueError: no object is here, or it is cut off.
        """
        opening = _OPENING.match(self.data, self.position)
        if opening is None:
            raise ValueError("an object {...} was expected")
        self.position = opening.end()
        is_open = opening[1] is None
        while is_open:
            key = _KEY.match(self.data, self.position)
            if key is None:
                raise ValueError("the text is cut off")
            self.position = key.end()
            yield json.loads(key[1])
            separator = _SEPARATOR.match(self.data, self.position)
            if separator is None:
                raise ValueError("the text is cut off")
            self.position = separator.end()
            is_open = separator[1] == b","

    def skip(self) -> tuple[int, int]:
        """Move over any value and return where it starts and stops.

        Raises:
            ValueError: the value is cut off.
        """
        start = self.position
        self.position = self._stop_of_any(start)
        return start, self.position

    def skip_rows_of_numbers(self) -> tuple[int, int]:
        """Move over a list of lists of numbers, many times faster than `skip`, and return where it starts and stops.

        Raises:
            ValueError: the value is cut off, or holds something else.
        """
        start = self.position
        end = _NO_NUMBERS.match(self.data, start) or _END_OF_NUMBERS.search(self.data, start)
        if end is None or self.data[start : start + 1] != b"[" or self.data.find(b'"', start, end.end()) >= 0:
            raise ValueError("a whole list of lists of numbers was expected")
        self.position = end.end()
        return start, self.position

    def parse(self) -> Any:
        """Move over any value and return it parsed.

        Raises:
            ValueError: the value is cut off or no JSON.
        """
        start, stop = self.skip()
        return json.loads(self.data[start:stop])

    def _stop_of_any(self, position: int) -> int:
        if self.data[position : position + 1] not in (b"{", b"[", b'"'):
            end = _SCALAR_END.search(self.data, position)
            return len(self.data) if end is None else end.start()
        depth = 0
        while True:
            token = _STRUCTURE.search(self.data, position)
            if token is None:
                raise ValueError("the text is cut off")
            position = token.end()
            if token[0] == b'"':
                text = _STRING.match(self.data, token.start())
                if text is None:
                    raise ValueError("the text is cut off")
                position = text.end()
            else:
                depth += 1 if token[0] in (b"{", b"[") else -1
            if depth == 0:
                return position
