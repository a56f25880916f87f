"""Self-distillation on recorded calls: the student learns the teacher's answers to the teacher's own inputs.

No data is needed. Both models see the x_t of the teacher's trajectory, so errors of the student do not carry
it away from what the teacher knows (VQ4DiT, Deng et al. 2025, section 3.3; 1.58-bit FLUX learns from its
teacher's generations alike). Knows nothing of what makes the student small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ditpress.calibrate.calibration import moved
from ditpress.calibrate.calls import Call
from ditpress.compress.distill.batches import stratified
from ditpress.compress.distill.examples import Mixed, Whole
from ditpress.compress.distill.losses import Features, relative_error
from ditpress.compress.distill.optimizer import OptimizerName, make_optimizer
from ditpress.compress.distill.resume import SavedTraining
from ditpress.errors import InputError, StageError
from ditpress.processes import ALONE, Processes
from ditpress.progress import track
from ditpress.schema import Settings

FLOOR = 0.01  # of the peak learning rate, where the cosine ends


class Training(Settings):
    """How long and how fast a student learns. AdamW with a cosine schedule."""

    steps: int = Field(default=1000, ge=1, description="optimizer steps")
    calls: int = Field(
        default=2, ge=1, description="recorded calls a step, one from each part of the range of timesteps"
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="peak of the schedule, for plain parameters")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="part of the steps with a rising rate")
    optimizer: OptimizerName = Field(
        default="adamw", description="adamw8bit: moments in 8 bits (bitsandbytes), on GPUs"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of AdamW, decoupled")
    clip: float | None = Field(default=1.0, gt=0, description="largest norm of the gradient; null: any")
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of the average of the parameters kept at the end"
    )
    features: float = Field(
        default=0.0, ge=0, description="weight of the error of block outputs beside that of the output"
    )
    seed: int = Field(default=0, ge=0, description="of the order of the calls")


def distill(
    student: nn.Module,
    teacher: nn.Module,
    calls: Sequence[Call],
    training: Training,
    groups: Sequence[dict[str, Any]],
    *,
    targets: Sequence[Tensor] | None = None,
    rows: Sequence[Sequence[int]] | None = None,
    blocks: Sequence[tuple[str, str]] = (),
    feature_error: Callable[[Tensor, Tensor], Tensor] = relative_error,
    of_teacher: Callable[[list[Tensor]], list[Tensor]] = list,
    after_step: Callable[[], None] | None = None,
    autocast: bool = False,
    saved: SavedTraining | None = None,
    processes: Processes = ALONE,
    description: str = "distillation",
) -> list[float]:
    """Train ``student`` in place; returns the loss of every step.

    loss = mean over rows of  MSE(output) / energy of the teacher's outputs at that timestep
           + features * mean over blocks of  feature_error(block output, the teacher's)

    The teacher's outputs are computed once for all calls, its block outputs in every step that needs them.
    Calls run one after the other and their gradients add up: the memory is that of one call. Several
    processes share out the calls of every step and add up their gradients, once a step; but for the order of
    these sums, each takes the very steps that one alone takes. (``DistributedDataParallel`` would do this in
    hooks on every backward pass; here a step has several, and only some parameters learn.)

    Args:
        student, teacher: answer ``model(**call.kwargs)``; both stay in the mode (eval) they are in.
        calls: recorded from the teacher.
        groups: parameter groups of AdamW; their "rate" (1 where missing) multiplies the learning rate.
            Whether a parameter of them takes gradients is set here, and unset at the end.
        targets: the teacher's output of every call, where it is known; else it is computed.
        rows: of every call those that are seen, many timesteps together, in batches as large as the calls;
            None: whole calls as they are.
        blocks: names of modules whose outputs are compared, (in the student, in the teacher); needed with
            ``training.features``.
        feature_error: of the student's and the teacher's output of a block, a scalar.
        of_teacher: what of the tensors that a block of the teacher gives is compared.
        after_step: called after every optimizer step.
        autocast: compute in bfloat16 where parameters are on a GPU.
        saved: where a killed training goes on from; it must know of all that changes beside parameters. The
            first process writes it, all of them read it.
        processes: that train together, each with a student and a teacher of its own, equal ones.

    Raises:
        InputError: no calls, no parameters, features without blocks, blocks of different outputs, more
            processes than calls a step, or an optimizer that cannot run here.
        StageError: the loss or its gradient is not finite; the parameters are those before that step, and
            ``saved`` keeps the last state that was saved, one with a finite loss.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    if not calls or not parameters:
        raise InputError(
            f"{description}: {len(calls)} calls and {len(parameters)} parameters; need both to train"
        )
    if training.features and not blocks:
        raise InputError(f"{description}: block outputs shall be compared, but no block is named")
    if processes.size > training.calls:
        raise InputError(
            f"{description}: {training.calls} calls a step for {processes.size} processes; raise "
            "training.calls, or start fewer"
        )
    device = parameters[0].device
    if targets is None:
        targets = teacher_outputs(teacher, calls, device)
    generator = torch.Generator().manual_seed(training.seed)
    examples = Whole(calls, targets) if rows is None else Mixed(calls, targets, rows, generator)
    peaks = [training.learning_rate * group.get("rate", 1.0) for group in groups]
    optimizer = make_optimizer(
        training.optimizer,
        [
            {key: value for key, value in group.items() if key != "rate"} | {"lr": peak}
            for group, peak in zip(groups, peaks, strict=True)
        ],
        training.weight_decay,
    )
    average = None if training.ema is None else [p.detach().clone() for p in parameters]
    batches = stratified(examples.timesteps, training.calls, generator)
    watched = _Blocks(student, teacher, blocks if training.features else (), feature_error, of_teacher)
    history = [] if saved is None else saved.load(parameters, optimizer, average)
    done = len(history)
    if processes.shared(done) != done:
        raise StageError(
            f"{description}: this process found {done} steps saved, the first one another number; all of "
            "them need the run folder on a disk that they share"
        )
    half = torch.autocast(device.type, torch.bfloat16, enabled=autocast and device.type == "cuda")
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        left = islice(batches, done, training.steps)
        for step, batch in enumerate(track(left, description, training.steps - done), start=done):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate_at(step, training.steps, training.warmup)
            optimizer.zero_grad(set_to_none=True)
            due = saved is not None and processes.first and step > done and step % saved.every == 0
            if saved is not None and due:
                saved.mark()
            loss = 0.0
            for index in batch[processes.rank :: processes.size]:
                example = examples[index]
                kwargs = moved(example.kwargs, device)
                with half:
                    error = example.error(first(student(**kwargs)).float())
                    if training.features:
                        error = error + training.features * watched.error(kwargs)
                (error / len(batch)).backward()
                loss += float(error.detach()) / len(batch)
            loss = _summed(loss, parameters, processes)
            limit = math.inf if training.clip is None else training.clip
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
            for what, value in (("loss", loss), ("gradient", norm)):
                if not math.isfinite(value):
                    raise StageError(
                        f"{description}: the {what} is {value} at step {step}; lower the learning rate"
                        f"{_last_good(saved)}"
                    )
            # The state before this step: its loss is known to be finite, that of the next one is not yet.
            if saved is not None and due:
                saved.save(parameters, optimizer, average, history)
            history.append(loss)
            optimizer.step()
            if after_step is not None:
                after_step()
            if average is not None and training.ema is not None:
                decay = min(training.ema, (1 + step) / (10 + step))
                with torch.no_grad():
                    torch._foreach_lerp_(average, list(parameters), 1 - decay)
    finally:
        watched.remove()
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
    if average is not None:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), average)
    return history


def _summed(loss: float, parameters: Sequence[Tensor], processes: Processes) -> float:
    """The loss of all processes; gradients become theirs too."""
    if processes.size == 1:
        return loss
    total = torch.tensor(loss, dtype=torch.float64, device=parameters[0].device)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    processes.sum_([total, *(p.grad for p in parameters if p.grad is not None)])
    return float(total)


def _last_good(saved: SavedTraining | None) -> str:
    """What to tell of the file that a failed training leaves."""
    steps = 0 if saved is None else saved.steps()
    return "" if saved is None or not steps else f". The state after {steps} steps is kept in {saved.path}"


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Part of the peak learning rate at ``step`` of ``steps``: linear up, then a cosine down to ``FLOOR``."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(1, steps - 1 - rising)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def teacher_outputs(teacher: nn.Module, calls: Iterable[Call], device: torch.device) -> list[Tensor]:
    """The output of every call, float32 on the CPU."""
    return [
        first(teacher(**moved(call.kwargs, device))).float().cpu() for call in track(calls, "teacher outputs")
    ]


class _Blocks:
    """Pairs of blocks, and how far the student's are from the teacher's."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pairs: Sequence[tuple[str, str]],
        measure: Callable[[Tensor, Tensor], Tensor],
        of_teacher: Callable[[list[Tensor]], list[Tensor]],
    ) -> None:
        self._teacher = teacher
        self._pairs = pairs
        self._measure = measure
        self._of_teacher = of_teacher
        self._student_features = Features(student, [own for own, _ in pairs])
        self._teacher_features = Features(teacher, [other for _, other in pairs])

    def error(self, kwargs: dict[str, Any]) -> Tensor:
        """Mean error of the blocks; the student has just run on ``kwargs``."""
        with torch.no_grad():
            self._teacher(**kwargs)
        own, other = self._student_features.take(), self._teacher_features.take()
        errors = []
        for names, a_parts, b_parts in zip(self._pairs, own, map(self._of_teacher, other), strict=True):
            shapes = [[tuple(part.shape) for part in parts] for parts in (a_parts, b_parts)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"{names[0]}: gives {shapes[0]}, {names[1]} of the original {shapes[1]}; they cannot be "
                    "compared, set training.features to 0"
                )
            errors += [self._measure(a, b) for a, b in zip(a_parts, b_parts, strict=True)]
        return torch.stack(errors).mean()

    def remove(self) -> None:
        self._student_features.remove()
        self._teacher_features.remove()


def first(output: Any) -> Tensor:
    """The tensor in what a diffusers transformer returns."""
    return output if isinstance(output, Tensor) else output[0]
