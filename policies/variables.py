"""Environment variables in a policy's values: `${NAME}`, or `${NAME:-2s}` with a default.

A value that is one variable and nothing else is read as YAML, so that a number stays a number; a
variable inside other text stays text. `$${` is a plain `${`.
"""

import re
from collections.abc import Mapping

from hybrid.policies.yaml_reader import Scalar, plain_scalar

_VARIABLE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}")


def fill_in(text: str, environment: Mapping[str, str]) -> tuple[Scalar, tuple[str, ...]]:
    """The value, and the names of the variables in it that the environment has.

    An empty variable counts as not set. Raises ValueError for one that is not set and has no
    default, for a `${` that starts no variable, and for a number that is too long.
    """
    used: list[str] = []

    def replacement(match: re.Match[str]) -> str:
        escaped, name, default = match.groups()
        if escaped:
            return "${"
        if environment.get(name):
            used.append(name)
            return environment[name]
        if default is None:
            raise ValueError(f"{name} is not in the environment; ${{{name}:-...}} gives a default")
        return str(default)

    stray = re.search(r"(?<!\$)\$\{", _VARIABLE.sub("", text))
    if stray:
        raise ValueError(f"{text!r}: a variable is ${{NAME}} or ${{NAME:-default}}; $${{ is ${{")
    filled = _VARIABLE.sub(replacement, text)
    whole = _VARIABLE.fullmatch(text)
    value = plain_scalar(filled.strip()) if whole and whole[2] else filled
    return value, tuple(dict.fromkeys(used))
