"""The figures of the README and of the model card, measured again and written in.

    python benchmarks/figures.py              # the bundled model, about half an hour on two cores
    python benchmarks/figures.py --xl         # and DiT-XL/2 with random weights: size and speed

Runs are kept in --out and resumed, so a second call only writes the tables again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import ditpress
from ditpress.recipes.result import Result
from marks import write_between

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "training"))

from recognise import judge_accuracy, load_model, recognised  # noqa: E402  (lies in training/)

SAMPLES = 1000
# FID to real images is read without guidance, which trades variety for clarity: there a model that lost some
# accuracy can only get farther from the real images, with guidance it can also get nearer.
GUIDANCE = 1.0
RUNS = {
    "w8a8": ("w8a8", ()),
    "w4a8": ("w4a8", ()),
    "w4a8, one scale per channel": ("w4a8", ("quantize.weights.group=channel",)),
}
XL_RUNS = {"w4a8": ("w4a8", ())}


def run(model: str, recipe: str, overrides: tuple[str, ...], samples: int, out: Path) -> Result:
    """One run in the folder ``out``, resumed where it was left."""
    drawing = [f"validation.samples={samples}"]
    if samples:
        drawing.append(f"validation.guidance={GUIDANCE}")
    return ditpress.compress(model, recipe, out=out, overrides=[*overrides, *drawing])


def recognised_share(model: str, folder: Path) -> float:
    """What the judge recognises of 1,000 guided digits; kept beside the runs: drawing them takes a minute."""
    record = folder.with_suffix(".recognised.json")
    if not record.is_file():
        share = recognised(load_model(model), SAMPLES, None, None, 0)
        record.write_text(json.dumps({"recognised": share}) + "\n")
    return json.loads(record.read_text())["recognised"]


def zoo_table(out: Path) -> tuple[list[str], float]:
    """The rows for ``zoo:mnist-dit``, and the share of the original's digits that is recognised."""
    original = recognised_share("zoo:mnist-dit", out / "original")
    rows = [
        "| | size | bits | recognised | FID to real | FID to original | CLIP | PSNR | SSIM | SQNR | ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for index, (name, (recipe, overrides)) in enumerate(RUNS.items()):
        folder = out / name.replace(", ", "-").replace(" ", "-")
        report = run("zoo:mnist-dit", recipe, overrides, SAMPLES, folder).report.data
        size, fidelity, speed = report.size, report.fidelity, report.speed
        before, after, pairs = fidelity.original, fidelity.compressed, fidelity.paired
        if index == 0:
            bits = 8 * size.original_bytes / size.parameters
            rows.append(
                f"| original | {size.original_bytes / 1e6:.2f} MB | {bits:.1f} | {original:.1%} "
                f"| {before.fid:.2f} | 0 | {before.clip:.2f} | | | | {speed.original_ms:.1f} |"
            )
        share = recognised_share(str(folder), folder)
        rows.append(
            f"| {name} | {size.compressed_bytes / 1e6:.2f} MB | {size.effective_bits:.2f} | {share:.1%} "
            f"| {after.fid:.2f} | {after.fid_to_original:.3f} | {after.clip:.2f} | {pairs.psnr:.2f} dB "
            f"| {pairs.ssim:.4f} | {pairs.output_sqnr_db:.1f} dB | {speed.compressed_ms:.1f} |"
        )
    drawn = f"{fidelity.samples} samples, {fidelity.steps} steps, no guidance"
    timed = f"one denoising step, batch of 2, ONNX Runtime, {speed.hardware}, {speed.threads} threads"
    conditions = (
        f"`zoo:mnist-dit`, {drawn}. *ms*: {timed}; the original in fp32. *Recognised*: of as many samples "
        f"with guidance, by a classifier that gets {judge_accuracy():.2%} of the real test digits right."
    )
    return [*rows, "", conditions], original


def xl_table(out: Path) -> list[str]:
    """The rows for DiT-XL/2: real shapes, random weights."""
    rows = [
        "| | model | ONNX | bits | ms per step | of fp32 |",
        "|---|---|---|---|---|---|",
    ]
    for index, (name, (recipe, overrides)) in enumerate(XL_RUNS.items()):
        report = run("random:DiT-XL/2", recipe, overrides, 0, out / f"xl-{name}").report.data
        size, speed = report.size, report.speed
        if index == 0:
            bits = 8 * size.original_bytes / size.parameters
            gigabytes = size.original_bytes / 1e9
            rows.append(f"| original | {gigabytes:.2f} GB | | {bits:.0f} | {speed.original_ms:.0f} | 1.00 |")
        ratio = speed.compressed_ms / speed.original_ms
        rows.append(
            f"| {name} | {size.compressed_bytes / 1e9:.2f} GB | {size.onnx_bytes / 1e9:.2f} GB "
            f"| {size.effective_bits:.2f} | {speed.compressed_ms:.0f} | {ratio:.2f} |"
        )
    conditions = (
        f"`random:DiT-XL/2`, 256 tokens, batch of 2; {speed.hardware}, {speed.threads} threads, ONNX Runtime."
    )
    return [*rows, "", conditions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench-out")
    parser.add_argument("--xl", action="store_true", help="also DiT-XL/2 with random weights")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows, share = zoo_table(args.out)
    write_between(ROOT / "README.md", "figures", rows)
    card = [
        f"- recognised: **{share:.1%}** of {SAMPLES:,} samples (25 steps, guidance 1.5, seeds from 0)",
        f"- the judge gets {judge_accuracy():.2%} of the 10,000 real test digits right",
    ]
    write_between(ROOT / "ditpress" / "data" / "mnist-dit" / "README.md", "figures", card)
    if args.xl:
        write_between(ROOT / "README.md", "xl", xl_table(args.out))


if __name__ == "__main__":
    main()
