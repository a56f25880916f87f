"""Each rule on graphs that torch.onnx writes: where it must fire, and near misses to be left alone."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from export_models import low_bit
from torch import nn
from torch.nn import functional as F

from ditpress.errors import InputError
from ditpress.export.fuse import RULES, apply_rules, rule_names
from ditpress.export.fuse.pattern import qlinear_nodes, text
from ditpress.export.inputs import Signature
from ditpress.export.onnx import _save, build_model
from ditpress.export.parity import relative_difference
from ditpress.export.session import onnx_session, run_session
from ditpress.kernels.transforms import ChannelScale, Hadamard, Subspace
from ditpress.kernels.wrap import LowRankLinear, NormedLinear, SubspaceLinear, TransformedLinear

WIDTH, TOKENS = 64, 6
NORM = functools.partial(F.layer_norm, normalized_shape=(WIDTH,), eps=1e-6)


class Piece(nn.Module):
    """A few low-bit layers and computations with them, on inputs of their own so that nothing is shared."""

    def __init__(self, computations):
        super().__init__()
        torch.manual_seed(0)
        make = functools.partial(low_bit, format="int8", group=WIDTH, activation="int8")
        self.attn = nn.ModuleDict({name: make(nn.Linear(WIDTH, WIDTH)) for name in "abc"})
        self.attn["grouped"] = low_bit(nn.Linear(WIDTH, WIDTH), "int4", 32, "int8")
        self.attn["whole"] = low_bit(nn.Linear(WIDTH, WIDTH), "int4", WIDTH, "int8")
        self.attn["narrow"] = make(nn.Linear(WIDTH, 72))
        self.attn["weight_only"] = low_bit(nn.Linear(WIDTH, WIDTH), "int8", WIDTH, "none")
        one, two = (Hadamard.random((8, 8), WIDTH, torch.Generator().manual_seed(seed)) for seed in (0, 1))
        factors = ChannelScale(torch.rand(WIDTH))
        for name, transform in {"rotated": one, "with_it": one, "otherwise": two, "scaled": factors}.items():
            self.attn[name] = TransformedLinear(transform, make(nn.Linear(WIDTH, WIDTH)))
        down = make(nn.Linear(WIDTH, 8, bias=False))
        up = low_bit(nn.Linear(8, WIDTH, bias=False), "int8", 8, "int8")
        self.attn["branched"] = LowRankLinear(make(nn.Linear(WIDTH, WIDTH)), down, up)
        split = Subspace.rounded(torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(2)) / 8)
        for name in ("split", "split_too"):
            up = low_bit(nn.Linear(8, WIDTH, bias=False), "int8", 8, "int8")
            self.attn[name] = SubspaceLinear(split, make(nn.Linear(WIDTH, WIDTH)), up)
        self.attn["normed"] = NormedLinear(make(nn.Linear(WIDTH, WIDTH)), torch.rand(WIDTH), 1e-6)
        self.elsewhere = nn.ModuleDict({"a": make(nn.Linear(WIDTH, WIDTH))})
        self.weight = nn.Parameter(torch.rand(WIDTH))
        self.constant_row = nn.Parameter(torch.rand(1, 1, WIDTH))
        self.computations = computations

    def forward(self, hidden_states, row, other, return_dict):
        results = [
            compute(self, self.attn, hidden_states * i, row / i, other / i).flatten(1)
            for i, compute in enumerate(self.computations, 1)
        ]
        self.widths = [result.shape[1] for result in results]
        return (torch.cat(results, 1),)


def fire(tmp_path, computations, rules=tuple(rule for rule in RULES if rule != "columns")):
    """Which rules fired, after checking that the graph still computes the same."""
    return fuse(tmp_path, computations, rules)[0]


def fuse(tmp_path, computations, rules):
    """Which rules fired, and the QLinear nodes afterwards."""
    generator = torch.Generator().manual_seed(1)
    call = {
        "hidden_states": torch.randn(3, TOKENS, WIDTH, generator=generator),
        "row": torch.randn(3, WIDTH, generator=generator),
        "other": torch.randn(3, WIDTH, generator=generator),
    }
    module = Piece(computations).eval().requires_grad_(False)
    signature = Signature.of(call)
    model = build_model(module, signature, call)
    outputs = []
    fired = {}
    for name in ("unfused.onnx", "fused.onnx"):
        _save(model, tmp_path / name, 10**9)
        session = onnx_session(tmp_path / name, library=False, optimize=False)
        outputs.append(run_session(session, signature.arguments(call)))
        fired = fired or apply_rules(model, rules)
    with torch.no_grad():
        expected = module(**call, return_dict=False)[0]
    triples = (tensor.split(module.widths, 1) for tensor in (*outputs, expected))
    for unfused, fused, truth in zip(*triples, strict=True):
        assert relative_difference(fused, unfused) <= 1e-6
        assert relative_difference(fused, truth) <= 0.02  # a last bit of the norm, a step of int8
    return {name: count for name, count in fired.items() if count}, qlinear_nodes(model.graph)


def modulate(x, row, other, norm=NORM):
    return norm(x) * (1 + row[:, None]) + other[:, None]


def attend(q, k, v, heads=2, merged=True, **options):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, **options)
    return y.transpose(1, 2).flatten(2) if merged else y.flatten(2)


CASES = {
    # what is wrapped around a layer
    "one rotation": ({"merge": 1}, lambda p, n, x, r, o: n["rotated"](x) + n["with_it"](x)),
    "two rotations": ({}, lambda p, n, x, r, o: n["rotated"](x) + n["otherwise"](x)),
    # the layers, and the branches on what the split takes away
    "one split": ({"merge": 2}, lambda p, n, x, r, o: n["split"](x) + n["split_too"](x)),
    "split and not": ({}, lambda p, n, x, r, o: n["split"](x) + n["a"](x)),
    "norm before a split": ({}, lambda p, n, x, r, o: n["split"](modulate(x, r, o))),
    "rotated and not": ({}, lambda p, n, x, r, o: n["rotated"](x) + n["a"](x)),
    "norm before a rotation": ({}, lambda p, n, x, r, o: n["rotated"](modulate(x, r, o))),
    "norm before factors": ({}, lambda p, n, x, r, o: n["scaled"](modulate(x, r, o))),
    "norm before a branch": ({"norm": 1}, lambda p, n, x, r, o: n["branched"](modulate(x, r, o))),
    "GELU after a branch": ({}, lambda p, n, x, r, o: F.gelu(n["branched"](x), approximate="tanh")),
    "gate after a branch": ({}, lambda p, n, x, r, o: r[:, None] * n["branched"](x) + x),
    "gate after a norm": ({}, lambda p, n, x, r, o: r[:, None] * n["normed"](x) + x),
    # layer norm with modulation
    "norm": ({"norm": 1}, lambda p, n, x, r, o: n["a"](modulate(x, r, o))),
    "norm, operands turned": (
        {"norm": 1},
        lambda p, n, x, r, o: n["a"](o[:, None] + (r[:, None] + 1) * NORM(x)),
    ),
    "norm, one added before": (
        {"norm": 1},
        lambda p, n, x, r, o: n["a"](NORM(x) * (1 + r)[:, None] + o[:, None]),
    ),
    "norm with another reader": (
        {"norm": 1},
        lambda p, n, x, r, o: n["a"](modulate(x, r, o)) + modulate(x, r, o),
    ),
    "two norms of one input": (
        {"norm": 2},
        lambda p, n, x, r, o: n["a"](modulate(x, r, o)) + n["b"](modulate(x, o, r)),
    ),
    "norm with weights": (
        {},
        lambda p, n, x, r, o: n["a"](modulate(x, r, o, functools.partial(NORM, weight=p.weight))),
    ),
    "norm with bias": (
        {},
        lambda p, n, x, r, o: n["a"](modulate(x, r, o, functools.partial(NORM, bias=p.weight))),
    ),
    "norm without modulation": ({}, lambda p, n, x, r, o: n["a"](NORM(x))),
    "norm without shift": ({}, lambda p, n, x, r, o: n["a"](NORM(x) * (1 + r[:, None]))),
    "modulation per token": ({}, lambda p, n, x, r, o: n["a"](NORM(x) * (1 + x) + o[:, None])),
    "shift per token": ({}, lambda p, n, x, r, o: n["a"](NORM(x) * (1 + r[:, None]) + x)),
    "one modulation for all": ({}, lambda p, n, x, r, o: n["a"](NORM(x) * (1 + p.constant_row) + o[:, None])),
    "not one": ({}, lambda p, n, x, r, o: n["a"](NORM(x) * (2 + r[:, None]) + o[:, None])),
    "norm of tokens": (
        {},
        lambda p, n, x, r, o: n["a"](
            modulate(x.mT, r[:, :TOKENS], o[:, :TOKENS], lambda t: F.layer_norm(t, (TOKENS,))).mT
        ),
    ),
    "norm before float weights": ({"norm": 1}, lambda p, n, x, r, o: n["weight_only"](modulate(x, r, o))),
    # GELU
    "gelu": ({"gelu": 1}, lambda p, n, x, r, o: F.gelu(n["a"](x), approximate="tanh")),
    "gelu of float weights": (
        {"gelu": 1},
        lambda p, n, x, r, o: F.gelu(n["weight_only"](x), approximate="tanh").sin(),
    ),
    "gelu by erf": ({}, lambda p, n, x, r, o: F.gelu(n["a"](x))),
    "gelu, y read twice": ({}, lambda p, n, x, r, o: (y := n["a"](x)) + F.gelu(y, approximate="tanh")),
    "gelu after a sum": ({}, lambda p, n, x, r, o: F.gelu(n["a"](x) + x, approximate="tanh")),
    # gated residual
    "gate": ({"gate": 1}, lambda p, n, x, r, o: r[:, None] * n["a"](x) + x),
    "gate, operands turned": ({"gate": 1}, lambda p, n, x, r, o: x + n["a"](x) * r[:, None]),
    "gate, y divided by one": ({"gate": 1}, lambda p, n, x, r, o: x + r[:, None] * (n["a"](x) / 1.0)),
    "gate and residual made later": (
        {"gate": 1},
        lambda p, n, x, r, o: n["a"](x) * (r.sin() * o)[:, None] + (x.cos() * x),
    ),
    "gate of its own norm": (
        {"norm": 1, "gate": 1},
        lambda p, n, x, r, o: r[:, None] * n["a"](modulate(x, r, o)) + x,
    ),
    "two gates": (
        {"gate": 2},
        lambda p, n, x, r, o: r[:, None] * n["b"](r[:, None] * n["a"](x) + x) + x,
    ),
    "gate per token": ({}, lambda p, n, x, r, o: x.sin() * n["a"](x) + x),
    "one gate for all": ({}, lambda p, n, x, r, o: p.weight * n["a"](x) + x),
    "no gate": ({}, lambda p, n, x, r, o: n["a"](x) + x),
    "gate without residual": ({}, lambda p, n, x, r, o: r[:, None] * n["a"](x)),
    "residual per sample": ({}, lambda p, n, x, r, o: r[:, None] * n["a"](x) + o[:, None]),
    "gate, y divided by two": ({}, lambda p, n, x, r, o: x + r[:, None] * (n["a"](x) / 2.0)),
    "gate, one divided by y": ({}, lambda p, n, x, r, o: x + r[:, None] * (1.0 / n["a"](x))),
    "gate, y read twice": ({}, lambda p, n, x, r, o: (y := n["a"](x)) * r[:, None] + x + y.sin()),
    "gate, product read twice": ({}, lambda p, n, x, r, o: (y := n["a"](x) * r[:, None]) + x + y.sin()),
    "y gates itself": ({}, lambda p, n, x, r, o: (y := n["a"](x)) * y + x),
    # layers side by side
    "merge": ({"merge": 1}, lambda p, n, x, r, o: n["a"](x) + n["b"](x).sin() + n["c"](x).cos()),
    "merge after one norm": (
        {"norm": 1, "merge": 1},
        lambda p, n, x, r, o: n["a"](h := modulate(x, r, o)) - n["b"](h).sin(),
    ),
    "merge, not the activated one": (
        {"gelu": 1, "merge": 1},
        lambda p, n, x, r, o: n["a"](x) + n["b"](x).sin() + F.gelu(n["c"](x), approximate="tanh"),
    ),
    "other inputs": ({}, lambda p, n, x, r, o: n["a"](x) + n["b"](x.sin())),
    "other groups": ({}, lambda p, n, x, r, o: n["grouped"](x) + n["whole"](x)),
    "other kind": ({}, lambda p, n, x, r, o: n["a"](x) + n["weight_only"](x)),
    "other module": ({}, lambda p, n, x, r, o: n["a"](x) + p.elsewhere["a"](x)),
    "narrow": ({}, lambda p, n, x, r, o: n["a"](x) + n["narrow"](x)[..., :WIDTH]),
    # attention
    "attention": ({"attention": 1}, lambda p, n, x, r, o: attend(x, x.sin(), x.cos())),
    "attention, scale given": (
        {"attention": 1},
        lambda p, n, x, r, o: attend(x, x.sin(), x.cos(), scale=0.3),
    ),
    "attention to other tokens": (
        {"attention": 1},
        lambda p, n, x, r, o: attend(x, x[:, 2:].sin(), x[:, 2:].cos()),
    ),
    "attention with a mask": (
        {"attention": 1},
        lambda p, n, x, r, o: attend(x, x.sin(), x.cos(), attn_mask=o[:, None, None, :TOKENS]),
    ),
    "attention with a mask per head": (
        {"attention": 1},
        lambda p, n, x, r, o: attend(
            x, x.sin(), x.cos(), attn_mask=x.unflatten(-1, (2, -1)).transpose(1, 2)[..., :TOKENS]
        ),
    ),
    "attention on turned heads": (
        {"attention": 1},
        lambda p, n, x, r, o: attend(
            (x.unflatten(-1, (2, -1)) * p.weight[:32]).flatten(-2), x.sin(), x.cos()
        ),
    ),
    "attention to two streams": (
        {"attention": 1},
        lambda p, n, x, r, o: attend(*(torch.cat([t, t.sin()], 1) for t in (x, x.tanh(), x.cos()))),
    ),
    "attention after low-bit layers": (
        {"attention": 1, "merge": 1},
        lambda p, n, x, r, o: attend(n["a"](x), n["b"](x), n["c"](x)),
    ),
    "causal": ({}, lambda p, n, x, r, o: attend(x, x.sin(), x.cos(), is_causal=True)),
    "mask of two dimensions": (
        {},
        lambda p, n, x, r, o: attend(x, x.sin(), x.cos(), attn_mask=p.weight[:36].view(6, 6)),
    ),
    # PyTorch guards against rows without any token
    "mask of booleans": (
        {},
        lambda p, n, x, r, o: attend(x, x.sin(), x.cos(), attn_mask=o[:, None, None, :TOKENS] > -1),
    ),
    "heads not merged": ({}, lambda p, n, x, r, o: attend(x, x.sin(), x.cos(), merged=False)),
}


def total(names):
    return dict(sum((Counter(CASES[name][0]) for name in names), Counter()))


@pytest.mark.parametrize("misses", [False, True])
def test_rules_fire_on_their_patterns_only(misses, tmp_path):
    names = [name for name, (expected, _) in CASES.items() if (expected == {}) == misses]
    if fire(tmp_path, [CASES[name][1] for name in names]) != total(names):  # which ones?
        each = {name: fire(tmp_path, [CASES[name][1]]) for name in names}
        assert each == {name: CASES[name][0] for name in names}
    assert len(names) > 20


def test_rules_are_switched_by_name(tmp_path):
    def compute(p, n, x, r, o):
        h = modulate(x, r, o)
        y = r[:, None] * n["c"](attend(n["a"](h), n["b"](h), x)) + x
        return F.gelu(n["whole"](y), approximate="tanh")

    counts = {"norm": 1, "gelu": 1, "gate": 1, "merge": 1, "attention": 1}
    assert fire(tmp_path, [compute]) == counts
    for rule in counts:
        assert fire(tmp_path, [compute], [rule]) == {rule: 1}
        assert fire(tmp_path, [compute], set(counts) - {rule}) == {
            k: v for k, v in counts.items() if k != rule
        }
    assert fire(tmp_path, [compute], tuple(RULES)) == counts | {"columns": 2}  # q and k are one node


def halves(row, other):
    """``[B, 2 * K]`` in two."""
    return torch.cat([row.sin(), other.cos()], 1).chunk(2, 1)


def six(row, weight):
    """``[B, 6, K]`` in six, as PixArt modulates."""
    return (row[:, None] + weight[:6, None]).chunk(6, 1)


def of_tokens(row, other):
    """``[B, 2, 2 * K]`` first by columns, then by rows."""
    first, _ = torch.stack([torch.cat([row, other], 1).sin(), torch.cat([other, row], 1)], 1).chunk(2, 2)
    return first.chunk(2, 1)


def quarters(row, other):
    """The last two quarters of ``[B, 4 * K]``, out of its second half."""
    return torch.cat([row.sin(), other.sin(), row.cos(), other.cos()], 1).chunk(2, 1)[1].chunk(2, 1)


COLUMNS = {
    # columns of shift, modulation and gate in the nodes that have them; None: the node is as without the rule
    "rows": ([[0, 0]], lambda p, n, x, r, o: n["a"](modulate(x, r, o))),
    "halves": ([[WIDTH, 0]], lambda p, n, x, r, o: n["a"](modulate(x, *halves(r, o)))),
    "halves for norm and gate": (
        [[0, WIDTH, WIDTH]],
        lambda p, n, x, r, o: (c := halves(r, o))[1][:, None] * n["a"](modulate(x, c[1], c[0])) + x,
    ),
    "one added before": (
        [[0, WIDTH]],
        lambda p, n, x, r, o: n["a"](NORM(x) * (1 + (c := halves(r, o))[1])[:, None] + c[0][:, None]),
    ),
    "half and row": ([[0, WIDTH]], lambda p, n, x, r, o: n["a"](modulate(x, halves(r, o)[1], o))),
    "half and no cut": (
        [[0, WIDTH]],
        lambda p, n, x, r, o: n["a"](NORM(x) * (1 + halves(r, o)[1][:, None]) + x.mean(1, keepdim=True)),
    ),
    "six": (
        [[2 * WIDTH, 5 * WIDTH], [WIDTH]],
        lambda p, n, x, r, o: (
            (c := six(r, p.weight))[1] * n["b"](n["a"](NORM(x) * (1 + c[5]) + c[2]).sin()) + x
        ),
    ),
    "half of a half": ([[3 * WIDTH, 2 * WIDTH]], lambda p, n, x, r, o: n["a"](modulate(x, *quarters(r, o)))),
    "merged": (
        [[WIDTH, 0]],
        lambda p, n, x, r, o: n["a"](h := modulate(x, *halves(r, o))) - n["b"](h).sin(),
    ),
    # only what lies side by side
    "columns of each row": (
        [[WIDTH, 0]],
        lambda p, n, x, r, o: n["a"](NORM(x) * (1 + (c := of_tokens(r, o))[0]) + c[1]),
    ),
    "no cut": (
        [None],
        lambda p, n, x, r, o: n["a"](NORM(x) * (1 + x.sum(1, keepdim=True)) + x.mean(1, keepdim=True)),
    ),
}


def columns(tmp_path, computations):
    """The attribute of every node that has shift, modulation or gate."""
    fired, nodes = fuse(tmp_path, computations, tuple(RULES))
    found = [node for node in nodes if "columns" in node.attributes]
    assert fired.get("columns", 0) == len(found)
    rows = [node for node in nodes if text(node, "prologue") or text(node, "epilogue")]
    return [list(node.attributes["columns"].as_ints()) if node in found else None for node in rows]


def test_columns_are_found(tmp_path):
    expected = [row for rows, _ in COLUMNS.values() for row in rows]
    if columns(tmp_path, [compute for _, compute in COLUMNS.values()]) != expected:  # which ones?
        each = {name: columns(tmp_path, [compute]) for name, (_, compute) in COLUMNS.items()}
        assert each == {name: rows for name, (rows, _) in COLUMNS.items()}


def test_names_of_rules():
    assert rule_names(True) == tuple(RULES) == ("norm", "gelu", "gate", "merge", "attention", "columns")
    assert rule_names(False) == rule_names([]) == ()
    assert rule_names({"merge", "norm"}) == ("norm", "merge")
    assert rule_names("gate") == ("gate",)
    with pytest.raises(InputError, match=r"'rope'.*norm, gelu"):
        rule_names(["norm", "rope"])
