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
_OPENINGS = re.compile(rb"\[(?:\s*\[)*")
_MOST_DEPTH = 5
_NO_NUMBERS = re.compile(rb"\[\s*\]")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"


class JsonWalk:
    """A position within JSON text that moves forward value by value.

    Args:
        data: the text, UTF-8, with or without the mark that Windows writes before it.

    Raises:
        ValueError: it is in another encoding.
    """

    def __init__(self, data: bytes) -> None:
        if data[:2] in _UTF16_MARKS:
            raise ValueError("its text is UTF-16, not UTF-8")
        self.data = data
        self.position = len(_UTF8_MARK) if data.startswith(_UTF8_MARK) else 0

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
                raise self._no_member()
            self.position = key.end()
            yield json.loads(key[1])
            separator = _SEPARATOR.match(self.data, self.position)
            if separator is None:
                raise self._no_member()
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
        """Move over a list of lists of numbers, however deep, and return where it starts and stops.

        It is many times faster than `skip`.

        Raises:
            ValueError: the value is cut off, or holds something else.
        """
        start = self.position
        depth = max(2, depth_of_lists(self.data, start))
        end = _NO_NUMBERS.match(self.data, start) or closings(min(depth, _MOST_DEPTH)).search(self.data, start)
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
        try:
            return json.loads(self.data[start:stop])
        except RecursionError as error:
            raise ValueError("its lists are nested too deeply") from error

    def _no_member(self) -> ValueError:
        rest = self.data[self.position : self.position + 20].strip()
        if not rest:
            return ValueError("the text is cut off")
        return ValueError(f"byte {self.position} begins {rest.decode(errors='replace')!r}, where a name was expected")

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


def depth_of_lists(data: bytes, start: int = 0) -> int:
    """Return how many lists open at a place."""
    opening = _OPENINGS.match(data, start)
    return 0 if opening is None else opening[0].count(b"[")


def closings(depth: int) -> re.Pattern[bytes]:
    """Return the pattern of so many closing brackets."""
    return re.compile(rb"\]\s*" * (depth - 1) + rb"\]")
