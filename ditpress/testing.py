"""The pytest plugin: gate a compressed model in a test of your own.

```python
def test_fidelity(assert_fidelity):
    assert_fidelity("out", "tests/fidelity.json")
```

``pytest --ditpress-update`` rewrites the baselines instead. Without the fixture, as a function:
:func:`assert_fidelity`. Imports torch only when a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ditpress.recipes.check import Check

UPDATE = "--ditpress-update"


def assert_fidelity(
    out: str | Path,
    baseline: str | Path,
    *,
    rules: dict[str, Any] | None = None,
    seed: int | None = None,
    update: bool = False,
    **settings: Any,
) -> Check:
    """Measure the run ``out`` and fail where it is worse than the baseline by a rule.

    Args:
        out: a finished run folder.
        baseline: the JSON file of ``ditpress check --update``.
        rules: in the place of the baseline's, such as ``{"psnr": {"min": 24}}``.
        seed: of the images, in the place of the run's.
        update: write the baseline instead.
        settings: of the validation, in the place of the run's: samples, steps, guidance, extractor, ...

    Raises:
        AssertionError: a rule failed; the message is the table of all rules.
        InputError: no such run, a broken baseline, or unlike settings.
    """
    from ditpress.progress import quiet
    from ditpress.recipes.check import check
    from ditpress.validate.gate.outputs import to_markdown

    with quiet():
        outcome = check(out, baseline, settings, seed=seed, rules=rules, update=update)
    assert outcome is not None, "torchrun: only the first process has an outcome"
    if not outcome.passed:
        raise AssertionError(to_markdown(outcome.verdicts, str(out)))
    return outcome


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ditpress", "fidelity of compressed models")
    group.addoption(UPDATE, action="store_true", help="write the baselines of assert_fidelity anew")


@pytest.fixture(name="assert_fidelity")
def _assert_fidelity(request: pytest.FixtureRequest) -> Callable[..., Check]:
    """:func:`assert_fidelity`; paths are relative to the root of the tests, ``--ditpress-update`` updates."""

    def run(out: str | Path, baseline: str | Path, **options: Any) -> Check:
        root = request.config.rootpath
        options.setdefault("update", bool(request.config.getoption(UPDATE)))
        return assert_fidelity(root / out, root / baseline, **options)

    return run
