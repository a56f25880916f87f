"""What a model is asked to draw, without any data: class labels, or a few neutral prompts."""

from __future__ import annotations

PROMPTS = (
    "a red apple on a wooden table",
    "a portrait of an old fisherman",
    "a street in a small town after rain",
    "a bowl of noodle soup seen from above",
    "a dog running along a beach",
    "a mountain lake at sunrise",
    "a blue bicycle leaning against a brick wall",
    "a library with tall windows",
    "a watercolour of a sailing boat",
    "a close-up of a bee on a yellow flower",
    "a night sky over the desert",
    "a toy robot made of tin",
    "a bridge over a river in autumn",
    "a cup of coffee beside an open notebook",
    "an oil painting of a vase of tulips",
    "a train crossing a snowy field",
)


def cycle(values: list, count: int) -> list:
    """The first ``count`` of ``values``, repeated as often as needed."""
    return [values[i % len(values)] for i in range(count)]
