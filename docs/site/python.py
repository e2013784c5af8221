"""The page of the Python interface: the names of `bitfront`, each with its docstrings."""

import bitfront as bf


def page() -> str:
    """A section for each name that `import bitfront as bf` gives, for mkdocstrings to fill."""
    lines = ["# The Python API", "", "What [bitfront from Python](../python.md) goes through.", ""]
    for name in sorted(bf.__all__, key=lambda name: (name != "open", name)):
        found = getattr(bf, name)
        lines += [
            f"::: {found.__module__}.{found.__qualname__}",
            "    options:",
            f"      heading: bf.{name}",
            f"      toc_label: bf.{name}",
            f"      members: {'false' if name == 'JobSpec' else 'null'}",
            "",
        ]
    return "\n".join([*lines, "The fields of a `JobSpec` are [the keys of a job](job.md).", ""])
