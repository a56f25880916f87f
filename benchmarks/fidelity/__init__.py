"""The fidelity table: every recipe, plain rounding at its bits, other tools, and what each stage adds.

    python benchmarks/fidelity                     # everything on zoo:mnist-dit, several hours on two cores
    python benchmarks/fidelity --only 'w4a8*'      # some rows; the others keep their figures
    python benchmarks/fidelity --write             # and into docs/fidelity.md and benchmarks/results
    python benchmarks/fidelity --report            # measures nothing: tables and checks again

Each row is made, drawn and measured by a process of its own (``worker``), so that its peak memory is its own
and one tool's imports do not change another's model. All rows see the same: images from the same seeds, the
same recorded calls for the output SQNR, the same extractor and real images; the figures are those of
``ditpress.validate``. Images are drawn through the row's ONNX file by ONNX Runtime, except of bitsandbytes
and torchao, which have none and are drawn in PyTorch.

A row is measured once and kept in OUT; one that another version of the package measured is named as such, and
measured again with ``--fresh``.
"""
