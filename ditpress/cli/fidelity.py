"""``validate``, ``check`` and ``report``: what finished runs are worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ditpress.cli.options import GUIDANCE, JSON, QUIET, SAMPLES, SEED, STEPS, silence, with_options

measure_options = with_options(
    SAMPLES,
    STEPS,
    GUIDANCE,
    click.option(
        "--extractor",
        type=click.Path(path_type=Path),
        help="CLIP folder behind CLIP score, CMMD and the rest.",
    ),
    click.option(
        "--inception",
        metavar="FILE",
        help="Inception-v3 weights of torch-fidelity, for FID and its kin: a path or hf:OWNER/NAME/FILE.",
    ),
    click.option(
        "--lpips",
        metavar="FILE",
        help="torchvision's AlexNet or VGG16, for LPIPS: a path or hf:OWNER/NAME/FILE.",
    ),
    click.option(
        "--reference",
        type=click.Path(path_type=Path),
        help="Real images: a folder, an .npz, or a reference batch of ADM's evaluation.",
    ),
)


def _measured(options: dict[str, Any]) -> dict[str, Any]:
    """The given ones of ``measure_options`` as settings of the validation."""
    names = ("samples", "steps", "guidance", "extractor", "inception", "lpips", "reference")
    found = {name: options.pop(name) for name in names}
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in found.items()
        if value is not None
    }


@click.command("validate")
@click.argument("out", type=click.Path(path_type=Path))
@measure_options
@click.option("--against", metavar="MODEL", help="Measure against MODEL instead; the report stays as it is.")
@with_options(JSON, QUIET)
def validate_command(out: Path, against: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure the finished run OUT as it lies there, with other settings; rewrites its report.

    Under torchrun the processes share the samples; an interrupted measurement goes on where it stopped.
    """
    from ditpress.recipes import show
    from ditpress.recipes.revalidate import measure_against, revalidate

    settings = _measured(options)
    with silence(quiet or as_json):
        if against is not None:
            fidelity = measure_against(out, against, settings)
            if fidelity is not None and as_json:
                click.echo(fidelity.model_dump_json(indent=2))
            elif fidelity is not None and not quiet:
                show.fidelity_table(f"{out} against {against}", fidelity)
            return
        result = revalidate(out, settings)
    if result is None:
        return
    show.finished(result, as_json, quiet)


@click.command("check")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--baseline", type=click.Path(path_type=Path), required=True, help="JSON file in your repository."
)
@click.option("--update", is_flag=True, help="Write what is measured as the new baseline; its rules stay.")
@click.option(
    "--rules", type=click.Path(path_type=Path), help="YAML file in the place of the baseline's rules."
)
@SEED
@measure_options
@click.option("--junit", type=click.Path(path_type=Path), help="Also write JUnit XML for the CI system.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also append Markdown to this job summary.")
@with_options(JSON, QUIET)
def check_command(
    out: Path,
    baseline: Path,
    update: bool,
    rules: Path | None,
    seed: int | None,
    junit: Path | None,
    markdown: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Gate the finished run OUT: exit code 1 where it is worse than the baseline by a rule.

    Measures OUT/onnx and OUT/model as they lie there; with other settings than the baseline's it refuses.
    """
    from ditpress.recipes import show
    from ditpress.recipes.check import check

    with silence(quiet or as_json):
        outcome = check(out, baseline, _measured(options), seed=seed, rules=rules, update=update)
    if outcome is None:
        return
    if not update:
        show.write_outcome(outcome, junit, markdown)
    if as_json:
        from ditpress.validate.gate.outputs import to_data

        click.echo(json.dumps(to_data(outcome.verdicts), indent=2))
    elif not quiet:
        show.check_table(outcome)
    outcome.require()


@click.command("report")
@click.argument("outs", metavar="OUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "page",
    type=click.Path(path_type=Path),
    default="frontier.html",
    show_default=True,
    help="The page.",
)
def report_command(outs: tuple[Path, ...], page: Path) -> None:
    """One page of several finished runs: size against FID against time, pictures side by side."""
    from ditpress.recipes.frontier_report import write_frontier

    click.echo(str(write_frontier(outs, page)))
