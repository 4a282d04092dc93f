"""A table's label column as numbers of classes, and the names of these classes."""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from persephonee.data_partitions.errors import BrokenDataError, LabelRangeError
from persephonee.data_partitions.limits import MAX_CLASSES
from persephonee.data_partitions.samples import ModelClasses

logger = logging.getLogger(__name__)

Labels = NDArray[np.int64]
Names = tuple[str, ...]


def to_labels(
    column: Any, per_file: list[tuple[int, Names | None]], name: str, model: ModelClasses | None = None
) -> tuple[Labels, Names | None]:
    """Return int64 labels and the class names.

    Strings are numbered by the model's names, else by the column's own, else in sorted order; not so where there is a
    model: a class that the data lacks would shift the numbers of all that follow.

    Args:
        column: a pyarrow column without dictionaries.
        per_file: for each file of it, the number of rows and the names that the file numbers its classes by.
        name: the column's, for sentences.
        model: the classes of the model that is to take the data.

    Raises:
        BrokenDataError: the column holds something else, or only some of the files name their classes.
        LabelRangeError: a word or a number that nothing names, or more than MAX_CLASSES classes.
    """
    column = _whole_numbers(column)
    if pa.types.is_integer(column.type):
        labels, names = _renumbered(np.asarray(column.to_numpy(), dtype=np.int64), per_file, name)
        labels, names = _as_the_model(labels, names, name, model)
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        named = [own for _, own in per_file if own]
        labels, names = _from_words(column.to_pylist(), _union(named) if named else None, name, model)
    else:
        raise BrokenDataError(
            f"Column '{name}' holds {column.type}; expected integers or strings; name the column of the "
            "classes with --label-column."
        )
    if len(names or ()) > MAX_CLASSES or labels.max(initial=0) >= MAX_CLASSES:
        raise LabelRangeError(f"Column '{name}' has more than {MAX_CLASSES} classes; name the column of the classes.")
    return labels, names


def _whole_numbers(column: Any) -> Any:
    """Return truth values, and whole numbers that pandas made floats, as integers; any other column unchanged."""
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)):
        return column
    numbers = np.asarray(column.to_numpy(), dtype=np.float64)
    is_whole = bool(np.isfinite(numbers).all()) and bool((numbers == np.rint(numbers)).all())
    return pa.chunked_array([numbers.astype(np.int64)]) if is_whole else column


def _renumbered(labels: Labels, per_file: list[tuple[int, Names | None]], name: str) -> tuple[Labels, Names | None]:
    """Number the classes of all files as one: shards may have been written with their names in another order."""
    named = [own for _, own in per_file if own]
    if not named or all(own == named[0] for _, own in per_file):
        return labels, named[0] if named else None
    if len(named) < len(per_file):
        raise BrokenDataError(
            f"Some of the files name the classes of column '{name}' and others do not, so that their numbers may mean "
            "different classes; write all files with the names, or with words for labels."
        )
    names = _union(named)
    parts, start = [], 0
    for rows, own in per_file:
        part = labels[start : start + rows]
        start += rows
        if own is None or (len(part) and not 0 <= part.min() <= part.max() < len(own)):
            raise LabelRangeError(f"Column '{name}' holds a label outside [0, {len(own or ())}), its file's classes.")
        parts.append(np.asarray([names.index(word) for word in own], dtype=np.int64)[part])
    return np.concatenate(parts), names


def _as_the_model(
    labels: Labels, names: Names | None, name: str, model: ModelClasses | None
) -> tuple[Labels, Names | None]:
    """Number the classes as the model does where both name the same ones."""
    if not names or model is None or not model.names or names == model.names:
        return labels, names
    if set(names) != set(model.names) or len(names) != len(model.names):
        if len(names) == model.count:
            logger.warning("the classes of column '%s' and of the model have other names; numbers decide", name)
        return labels, names
    inside = (labels >= 0) & (labels < len(names))
    order = np.asarray([model.names.index(word) for word in names], dtype=np.int64)
    return np.where(inside, order[np.where(inside, labels, 0)], labels), model.names


def _from_words(
    texts: list[str], names: Names | None, name: str, model: ModelClasses | None
) -> tuple[Labels, Names | None]:
    of_model = model.names if model else ()
    if model and not of_model and not names:
        raise LabelRangeError(
            "The label column holds words, and the model has no class names to number them by; give the numbers of its "
            f"classes, [0, {model.count})."
        )
    known = of_model or names or tuple(sorted(set(texts)))
    number = {text: index for index, text in enumerate(known)}
    unknown = sorted(set(texts) - set(known))
    if unknown:
        whose = "model" if of_model else "file"
        raise LabelRangeError(
            f"The label {unknown[0][:80]!r} is not among the {len(known)} class names of the {whose}."
        )
    return np.asarray([number[text] for text in texts], dtype=np.int64), known


def _union(lists: list[Names]) -> Names:
    return tuple(dict.fromkeys(word for names in lists for word in names))
