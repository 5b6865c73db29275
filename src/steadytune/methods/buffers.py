"""How a copy of a weight is named: a buffer's name may not have dots, and no parameter's name has a slash."""


def buffer_name(parameter: str) -> str:
    """The name of the buffer that belongs to a parameter.

    Args:
        parameter: its name in the model.
    """
    return parameter.replace(".", "/")


def parameter_name(buffer: str) -> str:
    """The name of the parameter that a buffer belongs to.

    Args:
        buffer: its name, from `buffer_name`.
    """
    return buffer.replace("/", ".")
