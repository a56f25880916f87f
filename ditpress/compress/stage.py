"""The stage protocol: one step of a recipe, as a typed value that knows how to apply itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.processes import ALONE, Processes
from ditpress.schema import Settings, parse, suggest

if TYPE_CHECKING:
    from ditpress.calibrate.calibration import Want
    from ditpress.calibrate.calls import Call
    from ditpress.load.denoiser import Denoiser


@dataclass(frozen=True)
class RunContext:
    """What a stage can reach beyond the model that it changes.

    Attributes:
        calls: recorded from the original.
        original: loads the model as it was before all stages, in the same pipeline; its memory is taken for
            as long as the caller holds it. None where a stage is applied outside of a run.
        facts: what the stages before found out, in order.
        work: a folder of the stage's own for what a killed run goes on from. The stage makes it when it needs
            it; it goes when the stage is done. None: nothing is kept.
        processes: that apply the stage together, where it is one that can be ``shared``.
    """

    calls: Sequence[Call] = ()
    original: Callable[[], Denoiser] | None = None
    facts: Sequence[Mapping[str, Any]] = ()
    work: Path | None = None
    processes: Processes = ALONE


class Stage(Settings, ABC):
    """One step of a recipe.

    Its fields are the method's hyper-parameters. ``kind`` is its name in YAML. The two frozen sets say, as
    data, where in a recipe it may stand, and ``needs_calls`` whether it works on the recorded calls
    themselves, beyond their statistics. The engine applies a stage by ``apply_in_run``, which most leave as
    it is: it hands on to ``apply_calls``, and that to ``apply``.
    """

    kind: str
    not_after: ClassVar[frozenset[str]] = frozenset()  # kinds that must not come earlier in the recipe
    not_before: ClassVar[frozenset[str]] = frozenset()  # kinds that must not come later
    needs_calls: ClassVar[bool] = False
    shared: ClassVar[bool] = False  # whether several processes can apply it together, as of torchrun
    float_copies: ClassVar[int] = 3  # models in float32 that are held at the worst moment, for estimates
    saved_copies: ClassVar[int] = 0  # models in float32 that its unfinished work takes on disk

    def completed(self, later: Sequence[Stage]) -> Stage:
        """This stage with the settings written in that it takes from ``later``, the stages that follow it.

        Raises:
            InputError: it needs something from a later stage, and there is none that has it.
        """
        return self

    def wants(self, denoiser: Denoiser) -> list[Want]:
        """Statistics of the recorded calls this stage needs; the engine collects all of them in one pass."""
        return []

    def passes(self, denoiser: Denoiser) -> float:
        """What the stage costs beyond its statistics, in forward passes of one image; for estimates.

        With guidance, both halves of the doubled batch are one image. A training step counts three.
        """
        return 0.0

    def builds_in(self, denoiser: Denoiser) -> float | None:
        """The scale of classifier-free guidance that the transformer gives by itself after this stage; most
        build in none. The stage then has ``built_in_guidance`` among its facts."""
        return None

    @abstractmethod
    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        """Change ``denoiser.transformer`` in place.

        Raises:
            InputError: the model cannot take this stage; raised before anything is changed.
        """

    def apply_calls(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], calls: Sequence[Call]
    ) -> dict[str, Any] | None:
        """``apply`` for stages with ``needs_calls``, which implement this; the others get no calls.

        Returns:
            What the stage found out, as plain data for its checkpoint; or nothing.

        Raises:
            InputError: as ``apply``.
        """
        self.apply(denoiser, statistics)
        return None

    def apply_in_run(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], context: RunContext
    ) -> Mapping[str, Any] | None:
        """``apply_calls`` for stages that need the original or a folder to resume from, and implement this.

        Raises:
            InputError: as ``apply``; also where ``context`` lacks what the stage needs.
        """
        return self.apply_calls(denoiser, statistics, context.calls if self.needs_calls else ())

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        """Make in ``skeleton`` the change of structure that ``apply`` makes; estimates are read from it.

        Args:
            denoiser: the model as it was loaded; its transformer stays as it is.
            skeleton: a model without numbers (:mod:`ditpress.recipes.skeleton`), as the stages before this
                one leave it. New modules may be on the meta device.

        Raises:
            InputError: the model cannot take this stage.
        """


STAGES: dict[str, type[Stage]] = {}
S = TypeVar("S", bound=Stage)


def register_stage(cls: type[S]) -> type[S]:
    """Class decorator: make a stage known to recipes under the default of its ``kind`` field."""
    STAGES[cls.model_fields["kind"].default] = cls
    return cls


def parse_stage(value: object, where: str = "stage") -> Stage:
    """A stage from YAML: ``{smooth: {alpha: 0.5}}``, ``{kind: smooth, alpha: 0.5}`` or just ``smooth``.

    Raises:
        InputError: unknown stage, unknown or malformed field.
    """
    if isinstance(value, Stage):
        return value
    fields: object
    if isinstance(value, str):
        kind, fields = value, {}
    elif isinstance(value, Mapping) and "kind" in value:
        kind, fields = value["kind"], {name: item for name, item in value.items() if name != "kind"}
    elif isinstance(value, Mapping) and len(value) == 1:
        ((kind, fields),) = value.items()
    else:
        raise InputError(f'{where}: expected one stage such as "smooth: {{alpha: 0.5}}", got {value!r}')
    if kind not in STAGES:
        raise InputError(f'{where}: unknown stage "{kind}"; {suggest(str(kind), STAGES)}')
    return parse(STAGES[kind], fields, str(kind))


def check_order(stages: Iterable[Stage]) -> None:
    """Raise InputError where a stage stands before or after one that its declaration forbids."""
    earlier: list[Stage] = []
    for stage in stages:
        for other in earlier:
            if other.kind in stage.not_after or stage.kind in other.not_before:
                same = stage.kind == other.kind
                remedy = "name it once" if same else f"put {stage.kind} first"
                raise InputError(f"stage {stage.kind} must not come after {other.kind}; {remedy}")
        earlier.append(stage)


def complete(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Every stage with what it takes from the later ones written in. Raises what ``completed`` raises."""
    return tuple(stage.completed(stages[index + 1 :]) for index, stage in enumerate(stages))
