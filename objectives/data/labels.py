"""Labels as files have them: names of classes, or numbers of those that are listed."""

from collections.abc import Mapping, Sequence

from bitfront.errors import InvalidSample
from objectives.data.captions import class_names, names_in


def labelled(
    values: Sequence[str], given: Mapping[str, str] | Sequence[str] | str | None, title: str
) -> tuple[tuple[str, ...], list[int]]:
    """What the classes are called, in the order of the labels, and each sample's label.

    Args:
        values: Of each sample: the name of its class, or the place of it in `given`.
        given: `data.classes`; a mapping maps values to names.
        title: What a message calls the data.

    Raises:
        InvalidSample: A number is none of a class.
        SpecError: Classes cannot be told apart, or have no names.
    """
    are_numbers = all(value.isdecimal() for value in values)
    listed = given is not None and not isinstance(given, Mapping)
    if are_numbers and listed:
        assert given is not None
        names = names_in(given)
        labels = [int(value) for value in values]
        if max(labels) >= len(names):
            raise InvalidSample(
                f"a label of {title} is {max(labels)}, but there are {len(names)} classes (0 to "
                f"{len(names) - 1}): name them all in data.classes"
            )
        return class_names(names, names, title), labels
    found = sorted(set(values), key=int if are_numbers else str)
    codes = {name: code for code, name in enumerate(found)}
    return class_names(found, given, title), [codes[value] for value in values]
