"""The stage ``mixed``: a format for every layer, so that the whole fits a budget with least output error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from ditpress.calibrate.calls import Call
from ditpress.calibrate.statistics import Want
from ditpress.compress.allocate.budget import parse_bytes
from ditpress.compress.allocate.frontier import Point, Problem, facts, measured, spread_points
from ditpress.compress.allocate.sensitivity import Make, OutputError, replaced, sensitivity
from ditpress.compress.quantize.layer import LayerPlan, empty_layer, quantize_linear
from ditpress.compress.quantize.spec import WeightSpec
from ditpress.compress.quantize.stage import Quantize
from ditpress.compress.stage import Stage, register_stage
from ditpress.errors import InputError
from ditpress.load.anatomy import Role, plain_name
from ditpress.load.modules import replace_module
from ditpress.validate.size import stored_modules

if TYPE_CHECKING:
    from ditpress.load.denoiser import Denoiser

Options = dict[str, dict[int, LayerPlan]]  # layer name -> index of the candidate -> what the layer becomes


@register_stage
class Mixed(Stage):
    """Measure every layer in every candidate format, solve a knapsack, measure its best solutions again.

    HAWQ-V2 (Dong et al. 2020) and ZeroQ (Cai et al. 2020) with two changes. The sensitivity of a layer is the
    error of the transformer's output on recorded calls, not a Hessian trace or the divergence of a
    classifier. And what the sum of single errors proposes is measured end to end before it is taken.
    """

    kind: Literal["mixed"] = "mixed"
    not_after: ClassVar[frozenset[str]] = frozenset({"mixed", "quantize"})
    not_before: ClassVar[frozenset[str]] = frozenset({"quantize"})
    needs_calls: ClassVar[bool] = True

    bits: float | None = Field(
        default=None, gt=0, description="at most so many bits a parameter, everything stored counted"
    )
    budget: str | None = Field(default=None, description="or at most so many bytes: 0.3GB")
    candidates: tuple[WeightSpec, ...] = Field(
        default=(
            WeightSpec(format="ternary", group=64),
            WeightSpec(format="int4", group=64),
            WeightSpec(format="int8", group="channel"),
        ),
        min_length=2,
        description="formats that a layer may take",
    )
    activations: Literal["int8", "none"] = Field(
        default="int8", description="int8: per token, dynamic, symmetric; none: weight-only"
    )
    calls: int = Field(
        default=4, ge=1, description="recorded calls on which errors are measured, evenly over the timesteps"
    )
    points: int = Field(default=6, ge=0, description="of the frontier that are measured end to end")
    keep: tuple[Role, ...] = Field(
        default=(Role.EMBEDDER, Role.FINAL, Role.OTHER), description="roles that stay as they are"
    )
    skip: tuple[str, ...] = Field(
        default=(), description="layers that stay as they are, by name pattern (* and ?)"
    )

    @field_validator("budget")
    @classmethod
    def _a_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_bytes(value)
        return value

    @model_validator(mode="after")
    def _one_budget(self) -> Mixed:
        if (self.bits is None) == (self.budget is None):
            given = "neither is given" if self.bits is None else f"bits {self.bits} and budget {self.budget}"
            raise InputError(f"mixed: expected either bits or budget, {given}; set one, and the other null")
        return self

    def plan(self, denoiser: Denoiser, skeleton: nn.Module) -> None:
        """Formats by a guess at the errors, every bit a quarter: the size is right, the layers are not known
        before they are measured."""
        options = self._options(denoiser, skeleton)
        costs = _costs(skeleton, options)
        errors = {
            name: {i: _guess(skeleton, name, cost) for i, cost in c.items()} for name, c in costs.items()
        }
        problem = Problem(costs, errors, _other_bits(skeleton, options))
        contenders = self._contenders(problem, _parameters(skeleton))
        best = min(contenders, key=lambda point: point.predicted)
        for name, index in best.picks.items():
            linear = cast(nn.Linear, skeleton.get_submodule(name))
            replace_module(skeleton, linear, empty_layer(linear, options[name][index]))

    def wants(self, denoiser: Denoiser) -> list[Want]:
        return [
            Want(name, statistic)
            for name, plans in self._options(denoiser, denoiser.transformer).items()
            for statistic in dict.fromkeys(s for plan in plans.values() for s in plan.statistics())
        ]

    def apply(self, denoiser: Denoiser, statistics: Mapping[Want, Tensor]) -> None:
        """Refused: errors are measured on recorded calls. See :meth:`apply_calls`."""
        raise InputError("mixed: needs recorded calls; run it through a recipe, or use apply_calls")

    def apply_calls(
        self, denoiser: Denoiser, statistics: Mapping[Want, Tensor], calls: Sequence[Call]
    ) -> dict[str, Any]:
        """Choose and quantize.

        Returns:
            ``frontier``: see :func:`ditpress.compress.allocate.frontier.facts`.

        Raises:
            InputError: no calls, a budget that no allocation meets, or what ``quantize`` raises.
        """
        if not calls:
            raise InputError("mixed: needs recorded calls; raise calibration.steps")
        transformer = denoiser.transformer
        options = self._options(denoiser, transformer)
        parameters = _parameters(transformer)
        costs = _costs(transformer, options)
        self._contenders(Problem(costs, costs, _other_bits(transformer, options)), parameters)  # may refuse
        error = OutputError(transformer, _evenly(calls, self.calls))
        # Every layer is fitted once in every format and kept: together less than the float model.
        makes: dict[str, dict[int, Make]] = {
            name: {
                index: cache(partial(_make, transformer, name, plan, statistics))
                for index, plan in plans.items()
            }
            for name, plans in options.items()
        }
        errors = sensitivity(transformer, error, makes)
        problem = Problem(costs, errors, _other_bits(transformer, options))

        def measure(picks: Mapping[str, int]) -> float:
            chosen = {name: makes[name][index] for name, index in picks.items()}
            with replaced(transformer, chosen):
                return error.measure(transformer)

        points = problem.points()
        contenders = measured(self._contenders(problem, parameters), measure)
        checked = [*measured(spread_points(points, self.points), measure), *contenders]
        fitting = [point for point in checked if point.bits <= self._budget(parameters)]
        best = min(fitting, key=lambda point: (cast(float, point.measured), point.bits))
        layers = {plain_name(name): self.candidates[index] for name, index in best.picks.items()}
        self._quantize(layers).apply_calls(denoiser, statistics, calls)
        found = facts(
            points,
            checked,
            best,
            candidates=[_label(spec) for spec in self.candidates],
            errors=errors,
            parameters=parameters,
            budget=self._budget(parameters),
        )
        return {"frontier": found}

    def _budget(self, parameters: int) -> int:
        """Bits of the whole transformer."""
        if self.budget is not None:
            return 8 * parse_bytes(self.budget)
        assert self.bits is not None
        return int(self.bits * parameters)

    def _contenders(self, problem: Problem, parameters: int) -> list[Point]:
        budget = self._budget(parameters)
        found = problem.contenders(budget)
        if not found:
            least = problem.smallest_bits()
            raise InputError(
                f"mixed: {self.budget or f'{self.bits:g} bits'} is less than the smallest that the candidates"
                f" allow, {least / parameters:.3f} bits a parameter or {(least + 7) // 8:,} bytes; raise it,"
                " or add a candidate of fewer bits"
            )
        return found

    def _options(self, denoiser: Denoiser, transformer: nn.Module) -> Options:
        """What every layer may become.

        Raises:
            InputError: a ``skip`` pattern that matches no layer, or a layer that fits no candidate.
        """
        roles = denoiser.anatomy.linears(transformer)
        for pattern in self.skip:
            if not any(fnmatchcase(plain_name(name), pattern) for name in roles):
                names = ", ".join(get_close_matches(pattern, map(plain_name, roles), n=3, cutoff=0.0))
                raise InputError(f'mixed.skip: "{pattern}" matches no layer; closest: {names}')
        options: Options = {}
        for name, role in roles.items():
            linear = transformer.get_submodule(name)
            skipped = role in self.keep or any(fnmatchcase(plain_name(name), p) for p in self.skip)
            if skipped or not isinstance(linear, nn.Linear):
                continue
            activation = "none" if role is Role.MODULATION else self.activations
            refused: InputError | None = None
            options[name] = {}
            for index, spec in enumerate(self.candidates):
                plan = LayerPlan(spec, activation)
                try:
                    plan.check(linear, name)
                except InputError as error:
                    refused = error
                    continue
                options[name][index] = plan
            if not options[name] and refused is not None:
                raise refused
        if not options:
            raise InputError("mixed: every layer is kept or skipped; shorten mixed.keep or mixed.skip")
        return options

    def _quantize(self, layers: Mapping[str, WeightSpec]) -> Quantize:
        return Quantize(
            weights=self.candidates[-1],
            modulation=self.candidates[-1],
            activations=self.activations,
            layers=dict(layers),
            keep=self.keep,
            skip=self.skip,
        )


def _make(transformer: nn.Module, name: str, plan: LayerPlan, statistics: Mapping[Want, Tensor]) -> nn.Module:
    linear = cast(nn.Linear, transformer.get_submodule(name))
    found = {statistic: statistics[Want(name, statistic)] for statistic in plan.statistics()}
    return quantize_linear(linear, plan, name, found)


def _costs(transformer: nn.Module, options: Options) -> dict[str, dict[int, int]]:
    """Stored bits of every layer in every format."""
    return {
        name: {
            index: sum(
                stored.bits
                for stored in stored_modules(
                    empty_layer(cast(nn.Linear, transformer.get_submodule(name)), plan)
                ).values()
            )
            for index, plan in plans.items()
        }
        for name, plans in options.items()
    }


def _other_bits(transformer: nn.Module, options: Options) -> int:
    """Stored bits of everything but the layers to be quantized."""
    return sum(stored.bits for name, stored in stored_modules(transformer).items() if name not in options)


def _parameters(transformer: nn.Module) -> int:
    return sum(stored.parameters for stored in stored_modules(transformer).values())


def _guess(skeleton: nn.Module, name: str, cost: int) -> float:
    """Noise of rounding: a quarter for every bit more (high-resolution theory), as many times as weights."""
    linear = cast(nn.Linear, skeleton.get_submodule(name))
    weights = linear.in_features * linear.out_features
    return float(weights * 4.0 ** (-cost / weights))


def _evenly(calls: Sequence[Call], count: int) -> list[Call]:
    """At most ``count`` calls, evenly over the recorded ones, from the middle of each part."""
    if len(calls) <= count:
        return list(calls)
    return [calls[(2 * index + 1) * len(calls) // (2 * count)] for index in range(count)]


def _label(spec: WeightSpec) -> str:
    group = "channel" if spec.group == "channel" else f"group {spec.group}"
    return f"{spec.format}, {group}" + ("" if spec.rounding == "nearest" else f", {spec.rounding}")
