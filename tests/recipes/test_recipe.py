"""Recipes: YAML in and out, overrides, and what a mistake is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ditpress.compress import Quantize, Smooth, parse_stage
from ditpress.compress.quantize.spec import LowRankSpec
from ditpress.errors import InputError
from ditpress.recipes.builtin import builtin_descriptions, builtin_names
from ditpress.recipes.recipe import Recipe, load_recipe


@pytest.mark.parametrize("name", builtin_names())
def test_builtin_recipes_survive_a_full_dump(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert builtin_descriptions()[name] == recipe.description
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    written = yaml.safe_load(path.read_text())
    assert written["seed"] == 0
    assert written["validation"]["guidance"] is None
    assert all(isinstance(next(iter(stage.values())), dict) for stage in written["stages"])


def test_stages_are_typed_however_they_are_written() -> None:
    expected = Smooth(alpha=0.25)
    assert parse_stage({"smooth": {"alpha": 0.25}}) == expected
    assert parse_stage({"kind": "smooth", "alpha": 0.25}) == expected
    assert parse_stage("smooth") == Smooth()
    assert parse_stage({"quantize": None}) == Quantize()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "stages: [{smoth: {}}]",
            r'stages\[0\]: unknown stage "smoth"; did you mean "smooth"\? known: .*quantize, .*smooth',
        ),
        ("stages: [{smooth: {alhpa: 1}}]", r'smooth has no field "alhpa"; did you mean "alpha"\?'),
        (
            "stages: [{smooth: {alpha: 2}}]",
            r'smooth\.alpha: expected a number from 0 to 1, or "search", got 2',
        ),
        (
            "stages: [{quantize: {weights: {format: int4, gruop: 64}}}]",
            r'quantize\.weights has no field "gruop"; did you mean "group"\?',
        ),
        ("stages: [{quantize: {weights: {format: int5, group: 64}}}]", "unknown weight format 'int5'"),
        (
            "stages: [{quantize: {weights: {format: int4, group: rows}}}]",
            "group: expected a positive whole number",
        ),
        ("stages: [{quantize: {weights: {format: int4}}}]", r"quantize\.weights\.group is missing; add it"),
        ("stages: [quantize, smooth]", "stage smooth must not come after quantize; put smooth first"),
        ("stages: [smooth, quantize, quantize]", "quantize must not come after quantize; name it once"),
        ("stages: []", "expected a list with at least one stage"),
        ("stages: [smooth]\ncalibraton: {}", r'has no field "calibraton"; did you mean "calibration"\?'),
        ("stages: [smooth\n", "not valid YAML"),
        ("- smooth", "expected fields such as stages, got list"),
    ],
)
def test_mistakes_are_named_with_the_remedy(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_unknown_recipe_and_missing_file() -> None:
    with pytest.raises(InputError, match=r'unknown recipe "w4a9"; did you mean "w4a8"\?'):
        load_recipe("w4a9")
    with pytest.raises(InputError, match="no such file"):
        load_recipe("nowhere.yaml")
    assert {"svdquant", "w4a8", "w8a8"} <= set(builtin_names())


def test_overrides_reach_sections_and_stages() -> None:
    recipe = load_recipe(
        "w4a8", ["quantize.weights.group=channel", "validation.samples=8", "seed=3", "smooth.alpha=0.7"]
    )
    smooth, quantize = recipe.stages
    assert isinstance(quantize, Quantize)
    assert quantize.weights.group == "channel"
    assert isinstance(smooth, Smooth)
    assert smooth.alpha == 0.7
    assert (recipe.validation.samples, recipe.seed) == (8, 3)
    changed = load_recipe(recipe, ["stages.1.skip=['*.3.*']"])
    assert isinstance(changed, Recipe)
    assert changed.stages[1].skip == ("*.3.*",)
    branched = load_recipe("svdquant")
    assert branched.stages[-1].low_rank is not None
    without = load_recipe(branched, ["quantize.low_rank=null"]).stages[-1]
    assert isinstance(without, Quantize)
    assert without.low_rank is None


def test_null_leaves_out_a_group_that_may_be_left_out() -> None:
    recipe = load_recipe("w4a8", ["quantize.low_rank={rank: 4, method: loftq}"])
    without = load_recipe(recipe, ["quantize.low_rank=null"]).to_data()
    assert without["stages"][-1]["quantize"]["low_rank"] is None
    with pytest.raises(InputError, match="weights"):
        load_recipe("w4a8", ["quantize.weights=null"])


def test_a_field_of_a_group_that_is_left_out_puts_it_in() -> None:
    quantize = load_recipe("w4a8", ["quantize.low_rank.rank=4", "quantize.low_rank.method=svdquant"]).stages[
        -1
    ]
    assert isinstance(quantize, Quantize)
    assert quantize.low_rank == LowRankSpec(rank=4, method="svdquant")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("quantize.low_rank.rnak=4", r'quantize\.low_rank has no field "rnak"; did you mean "rank"'),
        ("calibration.guidance.scale=4", r"calibration\.guidance: input should be a valid number"),
        ("quantize.weights.gruop=64", r'no setting "gruop"; did you mean "group"\?'),
        ("quantise.weights.group=64", r'no setting "quantise"; did you mean "quantize"\?'),
        ("quantize.weights=64", "is a group of settings; name one of its fields: format, group"),
        ("quantize.weights=null", r"quantize\.weights: input should be a valid dictionary"),
        ("quantize.activations.bits=8", '"activations" is a value and has no fields'),
        ("quantize.weights.group", "expected name=value"),
        ("stages.7.alpha=1", r"expected stages\.N\.field with N one of 0, 1"),
        ("smooth=1", "name a field of smooth: alpha"),
        ("validation.samples=-1", r"w4a8\.validation\.samples: input should be greater than or equal to 0"),
    ],
)
def test_bad_overrides_are_named_with_the_remedy(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe("w4a8", [override])
