"""Whether the gate catches what it is for: planted regressions of a run, and other seeds of the same run."""
