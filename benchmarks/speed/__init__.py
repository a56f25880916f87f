"""The speed table: ditpress against its peers on one machine.

    python benchmarks/speed               # everything, one to two hours on two cores
    python benchmarks/speed --quick       # a few blocks and rounds: does it run?
    python benchmarks/speed --write       # and into benchmarks/results and the README

Three steps, each in processes of its own, so that memory comes back:

1. ``prepare``: the torch model, its fp32 ONNX file, and from that file what each peer makes of it. Kept in
   ``bench-out/speed`` and made once.
2. ``measure``: every contestant is a process that holds its loaded model and sleeps. In each round all of
   them run in turn, one at a time; a ratio is taken inside a round, so that a machine that slows down for a
   minute slows both sides of it. What fits into memory together is measured together and then kept: a run
   that was stopped goes on from there.
3. ``report``: medians, ratios, the required bounds, a table and a plot.
"""
