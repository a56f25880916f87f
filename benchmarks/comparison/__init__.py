"""What the benchmarks of fidelity and of pruning share: rows against one original, each in its own process.

Images of every row come from the same seeds, the output SQNR from the same recorded calls; the figures are
those of ``ditpress.validate``. A row is measured once and kept in OUT; one that another version of the
package measured is named as such, and measured again with ``--fresh``.
"""
