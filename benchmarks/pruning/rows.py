"""The rows of the table, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from comparison import rows

SEEDS = (0, 1, 2)
# What compared rows train on, so that a row takes minutes on one core: output errors alone, since block
# outputs cost a pass of the original at every step (the row depth-features has them).
BUDGET = {
    "prune-depth": ("prune-depth.learned.training.steps=200",),
    "distill": (
        "distill.samples=256",
        "distill.training.steps=1500",
        "distill.training.calls=1",
        "distill.training.learning_rate=1e-3",
        "distill.training.features=0",
    ),
    "ternary": ("ternary.samples=64", "ternary.training.steps=400", "ternary.training.features=0"),
}
# What whole recipes train on: most of an hour of a core, with block outputs, as the recipes have it.
LONG = BUDGET | {
    "distill": (
        "distill.samples=1024",
        "distill.training.steps=12000",
        "distill.training.calls=1",
        "distill.training.learning_rate=1e-3",
    ),
}
CRITERIA = ("learned", "output", "similarity", "random")
IMPORTANCES = ("taylor", "hessian", "magnitude", "random")


@dataclass(frozen=True)
class Row(rows.Row):
    """One model of the table; ``of``: what it shares with the rows that differ from it by the seed alone.

    Attributes:
        fine_tune: train on the diffusion loss (``pruning.finetune``) where the recipe distils.
    """

    fine_tune: bool = False


ORIGINAL = Row("original", "original")


def _budget(budget: dict[str, tuple[str, ...]], *stages: str) -> tuple[str, ...]:
    return tuple(setting for stage in stages for setting in budget[stage])


DEPTH_RECIPE = Row(
    "prune-depth", "chain", recipe="prune-depth", overrides=_budget(LONG, "prune-depth", "distill")
)
CHAINS: tuple[Row, ...] = (
    DEPTH_RECIPE,
    Row("tiny", "chain", recipe="tiny", overrides=_budget(LONG, "prune-depth", "distill")),
    Row("small", "chain", recipe="small", overrides=_budget(LONG, "distill")),
    Row(
        "tiny-ternary",
        "chain",
        recipe="tiny-ternary",
        overrides=_budget(LONG, "prune-depth", "distill", "ternary"),
    ),
)


def _depth(criterion: str, seed: int) -> Row:
    return Row(
        f"depth-{criterion}-{seed}",
        "depth",
        of=f"depth-{criterion}",
        recipe="prune-depth",
        overrides=(
            *_budget(BUDGET, "prune-depth", "distill"),
            f"prune-depth.criterion={criterion}",
            f"prune-depth.seed={seed}",
            f"prune-depth.learned.training.seed={seed}",
            f"distill.training.seed={seed}",
        ),
        label=f"blocks: {criterion}, seed {seed}",
    )


DEPTH: tuple[Row, ...] = tuple(_depth(criterion, seed) for criterion in CRITERIA for seed in SEEDS)
BEST_DEPTH = DEPTH[0]


def _width(importance: str, seed: int) -> Row:
    return Row(
        f"width-{importance}-{seed}",
        "width",
        of=f"width-{importance}",
        recipe="small",
        overrides=(
            *_budget(BUDGET, "distill"),
            f"prune-width.importance={importance}",
            f"prune-width.seed={seed}",
            f"distill.training.seed={seed}",
        ),
        without=("smooth", "quantize"),
        label=f"units: {importance}, seed {seed}",
    )


WIDTH: tuple[Row, ...] = tuple(_width(importance, seed) for importance in IMPORTANCES for seed in SEEDS)
BEST_WIDTH = WIDTH[0]


def _alone(row: Row) -> Row:
    """The row without training."""
    return replace(
        row,
        name=f"{row.of}-alone",
        kind="part",
        of="",
        overrides=tuple(setting for setting in row.overrides if not setting.startswith("distill.")),
        without=(*row.without, "distill"),
        label=f"{row.label.partition(', ')[0]}, not trained",
    )


UNFITTED = replace(
    BEST_WIDTH,
    name="width-taylor-unfitted",
    kind="part",
    of="",
    overrides=(*BEST_WIDTH.overrides, "prune-width.reconstruct=false"),
    label="units: taylor, readers not fitted again",
)
FINE_TUNED = replace(
    BEST_DEPTH,
    name="depth-fine-tuned",
    kind="part",
    of="",
    fine_tune=True,
    label="blocks: learned, fine-tuned on the diffusion loss",
)
WITH_FEATURES = replace(
    BEST_DEPTH,
    name="depth-features",
    kind="part",
    of="",
    overrides=(*BEST_DEPTH.overrides, "distill.training.features=0.5"),
    label="blocks: learned, distilled with block outputs too",
)
PARTS: tuple[Row, ...] = (
    FINE_TUNED,
    WITH_FEATURES,
    *(_alone(row) for row in DEPTH if row.name.endswith(f"-{SEEDS[0]}")),
    UNFITTED,
    _alone(BEST_WIDTH),
)

ROWS: tuple[Row, ...] = (ORIGINAL, *CHAINS, *DEPTH, *WIDTH, *PARTS)


def select(patterns: Sequence[str]) -> list[Row]:
    """The rows whose names match a pattern (* and ?), and the original before them; all without one.

    Raises:
        ValueError: a pattern that matches no row.
    """
    wanted = rows.matching([row.name for row in ROWS], patterns)
    return [row for row in ROWS if row.name in wanted or row is ORIGINAL]
