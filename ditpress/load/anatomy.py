"""What is where in a transformer: roles of its linears, foldable groups, shared parts.

Everything is read from the tables in ``families.py``; nothing is traced.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ditpress.errors import InputError
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.wrap import NormedLinear, TransformedLinear, branch_modules, layers_of
from ditpress.load.families import FAMILIES, LINEAR_OWNERS
from ditpress.load.templates import BlockList, Family, Role, SmoothTemplate, ValueTemplate

__all__ = ["Anatomy", "Role", "SmoothGroup", "ValueGroup", "anatomy_of", "plain_name", "tie_shared"]

_WRAPPED = re.compile(r"(.+)\.(linear|down|up|transform)")
_OWN_LINEAR = re.compile(rf"(.*\.)?({LINEAR_OWNERS})\.linear")


@dataclass(frozen=True)
class SmoothGroup:
    """Linears that read the same input, and what absorbs ``1/s`` of that input, one factor per channel.

    ``absorb="modulation"``: the input is ``norm(x) * (1 + scale) + shift`` with shift and scale two of the
    ``chunks`` equal row blocks of the adaLN linear ``source``. Dividing it by s: shift rows (weight and bias)
    ``/= s``; scale rows ``weight /= s``, ``bias -> (bias + 1 - s) / s``.
    ``absorb="rows"``: the input is a mix over tokens of the output of ``source`` (values of an attention,
    whose weights sum to one): rows of ``source``, weight and bias, ``/= s``.
    In both cases the columns of ``linears`` are multiplied by s.
    """

    linears: tuple[str, ...]
    absorb: Literal["modulation", "rows"]
    source: str
    shift_chunk: int | None
    scale_chunk: int | None
    chunks: int


@dataclass(frozen=True)
class ValueGroup:
    """Value projections of one attention, and the linears that read the mix of their outputs over tokens.

    The mix is linear and works inside each of ``heads`` equal parts of the channels: an invertible matrix
    inside a head, multiplied to the rows of all ``sources`` (and their biases), passes to the columns of all
    ``linears``.
    """

    sources: tuple[str, ...]
    linears: tuple[str, ...]
    heads: int


@dataclass(frozen=True)
class Anatomy:
    """The description of one family; its methods apply it to a transformer of that family."""

    family: str

    @property
    def _table(self) -> Family:
        return next(table for table in FAMILIES if table.name == self.family)

    def linears(self, transformer: nn.Module) -> dict[str, Role]:
        """Every linear, quantized or not, by full name, in model order. A shared one appears once.

        Of a wrapped one it is the main linear, with the role that it has in the plain model; the branches
        of wrappers are left out.
        """
        branches = branch_modules(transformer)
        return {
            name: self._role(plain_name(name))
            for name, module in transformer.named_modules()
            if is_linear(module) and module not in branches
        }

    def block_lists(self, transformer: nn.Module) -> tuple[str, ...]:
        """Names of the lists of blocks that ``transformer`` has, in the order it runs them."""
        return tuple(blocks.name for blocks in self.blocks(transformer))

    def blocks(self, transformer: nn.Module) -> tuple[BlockList, ...]:
        """The same lists with what depends on them."""
        return tuple(blocks for blocks in self._table.blocks if len(getattr(transformer, blocks.name, ())))

    def fixed_blocks(self, transformer: nn.Module, block_list: str) -> frozenset[int]:
        """Indices of the blocks of a list that the model cannot do without.

        The last one where it is built unlike the others. The first one where the transformer itself reads
        one of its submodules, unless all blocks share that as one object.
        """
        table = next(blocks for blocks in self._table.blocks if blocks.name == block_list)
        blocks = list(getattr(transformer, block_list))
        fixed = {len(blocks) - 1} if table.last_stays else set()
        if table.first_lends is not None:
            lent = {id(block.get_submodule(table.first_lends)) for block in blocks}
            fixed |= {0} if len(lent) > 1 else set()
        return frozenset(fixed)

    def smooth_groups(self, transformer: nn.Module) -> list[SmoothGroup]:
        """All groups that can be folded exactly, block by block. Pruned-away modules have none.

        Names are those of main linears. A group is left out where a wrapper stands in the way of its fold: a
        transform or a branch on a reader's input, a norm or a branch on the source's output.
        """
        groups = []
        for block_list, templates in self._table.smooth:
            for index, block in enumerate(getattr(transformer, block_list, ())):
                prefix = f"{block_list}.{index}."
                groups += [group for t in templates if (group := _group(t, block, prefix)) is not None]
        return groups

    def value_groups(self, transformer: nn.Module) -> list[ValueGroup]:
        """All groups of values, block by block, by the names of main linears.

        A group is left out where a wrapper stands in the way: on a reader's input or on a source's output.
        """
        groups = []
        for block_list in self.block_lists(transformer):
            for index, block in enumerate(getattr(transformer, block_list)):
                prefix = f"{block_list}.{index}."
                groups += [g for t in self._table.values if (g := _value_group(t, block, prefix)) is not None]
        return groups

    def readers(self, transformer: nn.Module) -> list[tuple[str, ...]]:
        """Every linear, by the name of the main one, together with those of its block that read its input.

        Linears whose inputs are transformed by modules of their own stand alone.
        """
        linears = self.linears(transformer)
        place: dict[str, tuple[object, ...]] = {}
        for name in linears:
            plain = plain_name(name)
            *block, inner = plain.split(".", 2)
            group = next((i for i, names in enumerate(self._table.readers) if inner in names), None)
            if len(block) < 2 or block[0] not in self.block_lists(transformer) or group is None:
                place[name] = (name,)
                continue
            transforms = [
                id(module.transform) if isinstance(module, TransformedLinear) else id(module)
                for module in layers_of(transformer.get_submodule(plain))
            ]
            place[name] = (*block, group, *transforms[:-1])
        together: dict[tuple[object, ...], list[str]] = {}
        for name, key in place.items():
            together.setdefault(key, []).append(name)
        return [tuple(names) for names in together.values()]

    def shared(self, transformer: nn.Module) -> list[tuple[str, ...]]:
        """Submodules that hold equal tensors in every block, one tuple of full names per kind.

        Compared by value: in a checkpoint trained with an embedder per block they differ, and are not listed.
        """
        found = []
        for block_list in dict.fromkeys(name for name, _ in self._table.smooth):
            blocks = list(getattr(transformer, block_list, ()))
            for path in self._table.shared:
                parts = [block.get_submodule(path) for block in blocks]
                if len(parts) > 1 and all(_equal(parts[0], part) for part in parts[1:]):
                    found.append(tuple(f"{block_list}.{i}.{path}" for i in range(len(parts))))
        return found

    def _role(self, name: str) -> Role:
        return next((role for pattern, role in self._table.roles if re.fullmatch(pattern, name)), Role.OTHER)


def anatomy_of(transformer: nn.Module) -> Anatomy:
    """The anatomy of ``transformer``, chosen by its class. Raises InputError for one we do not know."""
    names = [cls.__name__ for cls in type(transformer).__mro__]
    for table in FAMILIES:
        if any(name in table.classes for name in names):
            return Anatomy(table.name)
    known = ", ".join(name for table in FAMILIES for name in table.classes)
    raise InputError(f"{type(transformer).__name__}: not a DiT family we know, expected one of {known}")


def plain_name(name: str) -> str:
    """The name that a linear has in the plain model, from that of a part of what wraps it.

    ``ff.net.2.linear.down`` -> ``ff.net.2``; ``norm1.linear``, a linear of diffusers, stays.
    """
    while not _OWN_LINEAR.fullmatch(name) and (match := _WRAPPED.fullmatch(name)):
        name = match[1]
    return name


def tie_shared(transformer: nn.Module, groups: Sequence[Sequence[str]]) -> None:
    """Make the modules of each group one object: the first one takes the place of the others."""
    for names in groups:
        first = transformer.get_submodule(names[0])
        for name in names[1:]:
            parent, _, child = name.rpartition(".")
            setattr(transformer.get_submodule(parent), child, first)


def is_linear(module: nn.Module) -> bool:
    """True for ``nn.Linear`` and for a quantized one."""
    return isinstance(module, nn.Linear | QuantizedLinear)


def _group(template: SmoothTemplate, block: nn.Module, prefix: str) -> SmoothGroup | None:
    """The group of ``template`` in ``block``; None unless all modules exist, the source has as many rows as
    the template says, and the fold passes what is wrapped around them."""
    modules: list[Any] = []
    names: list[str] = []
    for name in (*template.linears, template.source):
        passed = TransformedLinear if name == template.source else NormedLinear
        try:
            *wrappers, linear = layers_of(block.get_submodule(name))
        except AttributeError:
            return None
        if not is_linear(linear) or not all(isinstance(wrapper, passed) for wrapper in wrappers):
            return None
        modules.append(linear)
        names.append(prefix + name + ".linear" * len(wrappers))
    source = modules[-1]
    if any(source.out_features != template.chunks * linear.in_features for linear in modules[:-1]):
        return None
    return SmoothGroup(
        linears=tuple(names[:-1]),
        absorb=template.absorb,
        source=names[-1],
        shift_chunk=template.shift_chunk,
        scale_chunk=template.scale_chunk,
        chunks=template.chunks,
    )


def _value_group(template: ValueTemplate, block: nn.Module, prefix: str) -> ValueGroup | None:
    """The group of ``template``; None without a source or a linear, or with a wrapper between them."""
    found: list[list[str]] = [[], []]
    for names, passed, into in (
        (template.sources, TransformedLinear, found[0]),
        (template.linears, NormedLinear, found[1]),
    ):
        for name in names:
            module = _module(block, name)
            if module is None:
                continue
            *wrappers, linear = layers_of(module)
            if not is_linear(linear) or not all(isinstance(wrapper, passed) for wrapper in wrappers):
                return None
            into.append(prefix + name + ".linear" * len(wrappers))
    heads = getattr(_module(block, template.attention), "heads", None)
    if not found[0] or not found[1] or not isinstance(heads, int):
        return None
    return ValueGroup(tuple(found[0]), tuple(found[1]), heads)


def _module(root: nn.Module, name: str) -> nn.Module | None:
    """The submodule of that name; None where there is none, also where diffusers keeps None in its place."""
    try:
        return root.get_submodule(name)
    except AttributeError:
        return None


def _equal(a: nn.Module, b: nn.Module) -> bool:
    """Same structure and bit-equal tensors; the same object is equal without looking."""
    if a is b:
        return True
    state, other = a.state_dict(), b.state_dict()
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)
