"""What is timed: whole steps, blocks, single linears. Names and sizes only; ``models`` builds them."""

from __future__ import annotations

from dataclasses import dataclass

TOKEN_ROWS = 8  # a linear's input is [M / 8, 8, K]: three dimensions as in a model, the first one dynamic
LAST_LEVEL_CACHE = 32 * 2**20  # bytes that the copies of a 4-bit linear should outgrow


@dataclass(frozen=True)
class Workload:
    """One table.

    Attributes:
        name: on the command line and in results.json.
        title: in the tables.
        baseline: the contestant that runs in every group, and to which all ratios refer.
        contestants: which ones take part: "all" or "fusions".
        cases: what each contestant runs, as ``model`` or ``model@rows``.
        budget: seconds that one turn of a contestant should take per case.
        files: the workload whose prepared files it uses; empty: its own.
        max_copies: of one linear in a file; 0: whole models.
    """

    name: str
    title: str
    contestants: str = "all"
    cases: tuple[str, ...] = ("step",)
    budget: float = 0.8
    max_copies: int = 0
    files: str = ""
    baseline: str = "ours-w4a8"

    @property
    def source(self) -> str:
        """The workload whose files it uses."""
        return self.files or self.name

    @property
    def is_linear(self) -> bool:
        """Single linears, ``max_copies`` of one in a file."""
        return self.max_copies > 0

    @property
    def models(self) -> list[str]:
        """The models of its cases, in order."""
        return list(dict.fromkeys(split_case(case)[0] for case in self.cases))


# (K, N) of DiT-XL/2: attention output, q k v, MLP in, MLP out
LINEARS: tuple[tuple[int, int], ...] = ((1152, 1152), (1152, 3456), (1152, 4608), (4608, 1152))
ROWS = 512  # 256 tokens, two samples
OTHER_ROWS = (8, 32, 64, 128, 256, 1024)


def linear_name(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def linear_shape(model: str) -> tuple[int, int]:
    """The inverse of :func:`linear_name`."""
    k, n = model.split("x")
    return int(k), int(n)


def split_case(case: str) -> tuple[str, int | None]:
    """ "1152x4608@512" is the model "1152x4608" on 512 rows; a case without rows is a whole model."""
    model, _, rows = case.partition("@")
    return model, int(rows) if rows else None


def copies(shape: tuple[int, int], most: int, quick: bool) -> int:
    """How often a linear stands in its file, each time with other weights.

    In a model every linear reads its weights from memory; one linear alone would keep them in the cache. Time
    is divided by the number of copies, which is ``most`` at most.
    """
    if quick:
        return 2
    four_bit = shape[0] * shape[1] // 2
    return min(most, max(2, 2 * LAST_LEVEL_CACHE // four_bit))


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("dit-xl-256", "DiT-XL/2, 256×256 (256 tokens), batch 2"),
        Workload("dit-xl-512", "DiT-XL/2, 512×512 (1024 tokens), batch 2"),
        Workload("pixart-block", "PixArt-Σ blocks, 1024 tokens and 300 of text, batch 2"),
        Workload("sd3-block", "SD3-medium blocks, 1024 tokens and 333 of text, batch 2"),
        Workload(
            "linear",
            f"single linears, {ROWS} rows",
            cases=tuple(f"{linear_name(shape)}@{ROWS}" for shape in LINEARS),
            budget=0.15,
            max_copies=32,
        ),
        Workload(
            "linear-rows",
            "the linear 1152 to 4608 on other numbers of rows",
            cases=tuple(f"1152x4608@{rows}" for rows in OTHER_ROWS),
            budget=0.1,
            max_copies=12,
        ),
        Workload(
            "fusions",
            "DiT-XL/2, 256×256, batch 2: what each fusion brings",
            contestants="fusions",
            files="dit-xl-256",
        ),
    )
}
"""By name."""
