"""What the configs of all networks ask of their numbers."""

from __future__ import annotations


def check_positive(config: object, *names: str) -> None:
    """Raise ``ValueError``, with name and value, unless each of these numbers of ``config`` is above 0; of a tuple every number."""
    for name in names:
        value = getattr(config, name)
        if value == ():
            raise ValueError(f"{name} must have at least one number")
        if not all(number > 0 for number in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} must be above 0, got {list(value) if isinstance(value, tuple) else value}")
