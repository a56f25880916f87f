"""How much is to go of what: groups that a setting above zero applies to, and the sizes that remain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ditpress.compress.prune.ranking import keep_count
from ditpress.errors import InputError
from ditpress.load.residual import ResidualGroup
from ditpress.load.widths import Group, HeadGroup, HiddenGroup, Sizes, width_groups


@dataclass(frozen=True)
class Setting:
    """What a setting of the stage cuts: groups of one kind, the ``size`` of them that it makes smaller."""

    group: type[Group]
    size: str
    unit: str


SETTINGS: dict[str, Setting] = {
    "mlp": Setting(HiddenGroup, "hidden", "hidden unit"),
    "heads": Setting(HeadGroup, "heads", "head"),
    "head_dim": Setting(HeadGroup, "head_dim", "channel of a head"),
    "residual": Setting(ResidualGroup, "residual", "channel"),
}


@dataclass(frozen=True)
class Share:
    """Of what ``setting`` names the share ``ratio`` goes; what remains is a multiple of ``round_to``."""

    setting: str
    ratio: float
    round_to: int

    @property
    def of(self) -> Setting:
        return SETTINGS[self.setting]


def groups_to_cut(transformer: nn.Module, shares: Sequence[Share]) -> list[Group]:
    """What the ratios above zero apply to.

    Raises:
        InputError: there are none, one of them applies to nothing here, or to what cannot be cut.
    """
    wanted = [share for share in shares if share.ratio]
    if not wanted:
        *others, last = (share.setting for share in shares)
        raise InputError(
            f"prune-width: {', '.join(others)} and {last} are all 0, nothing would be cut; set one of them"
        )
    groups = [
        group
        for group in width_groups(transformer)
        if any(isinstance(group, share.of.group) for share in wanted)
    ]
    for share in wanted:
        if not any(isinstance(group, share.of.group) for group in groups):
            raise InputError(
                f"prune-width: {type(transformer).__name__} has nothing for "
                f"prune-width.{share.setting} to cut; set it to 0"
            )
    for group in groups:
        for name in group.linears:
            module = transformer.get_submodule(name)
            if not isinstance(module, nn.Linear | nn.Conv2d):
                raise InputError(
                    f"{name}: is a {type(module).__name__}, only plain linears are pruned; give the "
                    "original model"
                )
        if isinstance(group, HeadGroup) and group.normed and any(one.setting == "head_dim" for one in wanted):
            raise InputError(
                f"{group.name}: normalises queries and keys over the channels of a head, which cannot "
                "be cut exactly; set prune-width.head_dim to 0, and prune heads"
            )
    return groups


def sizes_left(groups: Sequence[Group], shares: Sequence[Share]) -> Sizes:
    """What remains of each group, the same share of all; groups that stay as they are have no entry.

    Raises:
        InputError: nothing would remain of a group, or a ratio above zero cuts nothing.
    """
    by_size = {share.of.size: share for share in shares}
    sizes: Sizes = {}
    for group in groups:
        left = {}
        for key, count in group.sizes.items():
            share = by_size[key]
            left[key] = keep_count(count, share.ratio, share.round_to)
            if left[key] == 0:
                raise InputError(
                    f"{group.name}: prune-width.{share.setting} {share.ratio:g} leaves no {share.of.unit} of "
                    f"{count} in multiples of {share.round_to}; lower it, or "
                    f"prune-width.round_to.{share.setting}"
                )
        if left != group.sizes:
            sizes[group.name] = left
    for key, share in by_size.items():
        own = [group for group in groups if key in group.sizes]
        if share.ratio and all(sizes.get(g.name, g.sizes)[key] == g.sizes[key] for g in own):
            raise InputError(
                f"prune-width.{share.setting} {share.ratio:g} cuts nothing: {own[0].name} has "
                f"{own[0].sizes[key]}, and what remains is rounded to multiples of {share.round_to}; "
                f"raise it, lower prune-width.round_to.{share.setting}, or set it to 0"
            )
    return sizes
