"""The pruning table: what goes, what training brings back, and what the chains of it with quantizing give.

    python benchmarks/pruning                      # everything on zoo:mnist-dit, several hours on one core
    python benchmarks/pruning --only 'depth-*'     # some rows; the others keep their figures
    python benchmarks/pruning --write              # and into docs/pruning.md and benchmarks/results
    python benchmarks/pruning --report             # measures nothing: tables and checks again

Rows are measured as those of ``benchmarks/fidelity`` (``comparison``). Every row is drawn through its ONNX
file, and one step of it is timed in ONNX Runtime in turn with a step of the original in fp32. Rows that
are compared train on the same budget (``rows.BUDGET``), recipes on a longer one (``rows.LONG``).
"""
