"""What the tests of width pruning share: float64 models, and the names of what belongs together, by hand."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ditpress.compress.prune.groups import Kept, KeptHeads, KeptHidden, KeptResidual
from ditpress.load.anatomy import anatomy_of
from ditpress.load.residual import ResidualGroup
from ditpress.load.widths import HiddenGroup, width_groups

# Attention -> what reads its heads; MLP -> what reads its hidden units, and from which column on.
ATTENTION: dict[str, dict[str, tuple[str, ...]]] = {
    "dit": {f"transformer_blocks.{i}.attn1": (f"transformer_blocks.{i}.attn1.to_out.0",) for i in range(2)},
    "pixart": {
        f"transformer_blocks.{i}.{name}": (f"transformer_blocks.{i}.{name}.to_out.0",)
        for i in range(2)
        for name in ("attn1", "attn2")
    },
    "sd3": {
        "transformer_blocks.0.attn": (
            "transformer_blocks.0.attn.to_out.0",
            "transformer_blocks.0.attn.to_add_out",
        ),
        "transformer_blocks.1.attn": (
            "transformer_blocks.1.attn.to_out.0",
            "transformer_blocks.1.attn.to_add_out",
        ),
        "transformer_blocks.1.attn2": ("transformer_blocks.1.attn2.to_out.0",),
        "transformer_blocks.2.attn": ("transformer_blocks.2.attn.to_out.0",),
    },
    "flux": {
        f"transformer_blocks.{i}.attn": (
            f"transformer_blocks.{i}.attn.to_out.0",
            f"transformer_blocks.{i}.attn.to_add_out",
        )
        for i in range(2)
    }
    | {f"single_transformer_blocks.{i}.attn": (f"single_transformer_blocks.{i}.proj_out",) for i in range(2)},
}
HIDDEN: dict[str, dict[str, tuple[str, int]]] = {
    "dit": {f"transformer_blocks.{i}.ff": (f"transformer_blocks.{i}.ff.net.2", 0) for i in range(2)},
    "pixart": {f"transformer_blocks.{i}.ff": (f"transformer_blocks.{i}.ff.net.2", 0) for i in range(2)},
    "sd3": {
        f"transformer_blocks.{i}.{name}": (f"transformer_blocks.{i}.{name}.net.2", 0)
        for i, name in ((0, "ff"), (1, "ff"), (2, "ff"), (0, "ff_context"), (1, "ff_context"))
    },
    "flux": {
        f"transformer_blocks.{i}.{name}": (f"transformer_blocks.{i}.{name}.net.2", 0)
        for i in range(2)
        for name in ("ff", "ff_context")
    }
    | {f"single_transformer_blocks.{i}": (f"single_transformer_blocks.{i}.proj_out", 32) for i in range(2)},
}


def in_blocks(*paths: str, blocks: str = "transformer_blocks", count: int = 2) -> tuple[str, ...]:
    return tuple(f"{blocks}.{i}.{path}" for i in range(count) for path in paths)


def qkv(attention: str) -> tuple[str, ...]:
    return tuple(f"{attention}.to_{name}" for name in "qkv")


def added_qkv(attention: str) -> tuple[str, ...]:
    return tuple(f"{attention}.add_{name}_proj" for name in "qkv")


# Where a stream starts -> the norms over its channels, and the linears that read them.
RESIDUAL: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "dit": {
        "pos_embed": (
            (*in_blocks("norm1.norm", "norm3"), "norm_out"),
            (*in_blocks(*qkv("attn1"), "ff.net.0.proj"), "proj_out_2"),
        )
    },
    "pixart": {},
    "sd3": {
        "pos_embed": (
            (*in_blocks("norm1.norm", "norm2", count=3), "norm_out.norm"),
            (
                *in_blocks(*qkv("attn"), "ff.net.0.proj", count=3),
                *(f"transformer_blocks.1.{name}" for name in qkv("attn2")),
                "proj_out",
            ),
        ),
        "context_embedder": (
            (
                *in_blocks("norm1_context.norm", count=3),
                *in_blocks("norm2_context"),
            ),
            (*in_blocks(*added_qkv("attn"), count=3), *in_blocks("ff_context.net.0.proj")),
        ),
    },
    "flux": {
        "x_embedder": (
            (
                *in_blocks("norm1.norm", "norm1_context.norm", "norm2", "norm2_context"),
                *in_blocks("norm.norm", blocks="single_transformer_blocks"),
                "norm_out.norm",
            ),
            (
                *in_blocks(*qkv("attn"), *added_qkv("attn"), "ff.net.0.proj", "ff_context.net.0.proj"),
                *in_blocks(*qkv("attn"), "proj_mlp", blocks="single_transformer_blocks"),
                "proj_out",
            ),
        )
    },
}


def denoiser_of(model: nn.Module) -> Any:
    return SimpleNamespace(transformer=model, anatomy=anatomy_of(model))


def run(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0].double()


def doubled(model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Both in float64."""
    return model.double(), {
        name: value.double() if value.is_floating_point() else value for name, value in inputs.items()
    }


def half(count: int, generator: torch.Generator) -> Tensor:
    """A random half of ``count``, as a mask."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=generator)[: count // 2]] = True
    return mask


def random_kept(model: nn.Module, channels: bool = False) -> list[Kept]:
    generator = torch.Generator().manual_seed(3)
    kept: list[Kept] = []
    for group in width_groups(model):
        if isinstance(group, HiddenGroup):
            kept.append(KeptHidden(group, half(group.hidden, generator)))
            continue
        if isinstance(group, ResidualGroup):
            kept.append(KeptResidual(group, half(group.width, generator)))
            continue
        heads = half(group.heads, generator)
        shape = (group.heads, group.head_dim)
        parts = [
            torch.stack([half(group.head_dim, generator) for _ in range(group.heads)])
            if channels
            else torch.ones(shape, dtype=torch.bool)
            for _ in range(2)
        ]
        queries, values = (part & heads[:, None] for part in parts)
        kept.append(KeptHeads(group, queries, values))
    return kept


def zero_inputs(model: nn.Module, name: str, start: int, keep: Tensor) -> None:
    """What the linear reads from column ``start`` on is zero where ``keep`` is false."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        x[..., start : start + len(keep)] *= keep
        return (x,)

    model.get_submodule(name).register_forward_pre_hook(hook)


def norm_over(model: nn.Module, name: str, keep: Tensor) -> None:
    """The norm takes mean and variance over the entries of ``keep`` alone, written out."""

    def hook(norm: Any, args: tuple[Tensor, ...], _: Tensor) -> Tensor:
        left = args[0][..., keep]
        centred = args[0] - left.mean(dim=-1, keepdim=True)
        deviation = (left.var(dim=-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        result = centred / deviation
        return result if norm.weight is None else result * norm.weight + norm.bias

    model.get_submodule(name).register_forward_hook(hook)


def masked(model: nn.Module, family: str, kept: list[Kept]) -> nn.Module:
    """The uncut model with all that goes at zero, by hooks, by the names of the test's own table."""
    result = copy.deepcopy(model)
    for one in kept:
        if isinstance(one, KeptHidden):
            name, start = HIDDEN[family][one.group.name]
            zero_inputs(result, name, start, one.units)
            continue
        if isinstance(one, KeptResidual):
            norms, readers = RESIDUAL[family][one.group.name]
            for name in norms:
                norm_over(result, name, one.channels)
            for name in readers:
                zero_inputs(result, name, 0, one.channels)
            continue
        for name in ATTENTION[family][one.group.name]:
            zero_inputs(result, name, 0, one.values.flatten())
        for name in ("to_q", "add_q_proj"):
            projection = getattr(result.get_submodule(one.group.name), name, None)
            if projection is not None and not bool(one.queries.all()):
                projection.register_forward_hook(lambda _, args, y, one=one: y * one.queries.flatten())
    return result
