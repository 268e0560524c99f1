"""The trackers that metrics go to, checked before a run begins."""

from __future__ import annotations

from collections.abc import Sequence

from ra3gym.errors import ConfigError, MissingExtraError, UnknownNameError


def known_trackers(names: Sequence[str] | None) -> Sequence[str]:
    """Return the trackers to use, TensorBoard if it is installed when `None`.

    Raises:
        UnknownNameError: accelerate knows no such tracker.
        MissingExtraError, ConfigError: the tracker's package is not installed.
    """
    from accelerate.tracking import LoggerType, get_available_trackers

    known = [tracker for tracker in LoggerType.list() if tracker != "all"]
    available = {str(tracker.value) for tracker in get_available_trackers()}
    if names is None:
        return [name for name in ("tensorboard",) if name in available]
    for name in names:
        if name not in known:
            raise UnknownNameError("tracker", name, known)
        if name not in available and name == "tensorboard":
            raise MissingExtraError(name, name, "the tracker 'tensorboard'")
        if name not in available:
            raise ConfigError(f"tracker {name!r}: its package is not installed. pip install {name}, or leave it out")
    return names
