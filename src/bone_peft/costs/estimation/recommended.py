"""Settings by model size, from the 'Bone (Bottleneck Network)' guide."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recommended:
    """What the guide recommends: smallest and largest value.

    Attributes:
        models: the sizes of models it is for.
        size: ``bottleneck_size``.
        alpha: ``bottleneck_alpha``.
        dropout: ``bottleneck_dropout``.
        targets: endings of the modules to adapt.
    """

    models: str
    size: tuple[int, int]
    alpha: tuple[float, float]
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "v_proj")


_BY_SIZE = (
    (500e6, Recommended("< 500M", (32, 32), (2.0, 2.0))),
    (2e9, Recommended("500M-2B", (32, 64), (2.0, 4.0))),
    (7e9, Recommended("2B-7B", (64, 64), (2.0, 2.0))),
    (float("inf"), Recommended("7B+", (64, 128), (1.0, 2.0))),
)


def recommended(parameters: int) -> Recommended:
    """The guide's settings for a model with this many parameters. Where it leaves a range, start at its low end."""
    return next(settings for limit, settings in _BY_SIZE if parameters < limit)
