"""Recorded calls of a pipeline, and streaming statistics over them."""

from ditpress.calibrate.blocks import BlockInputs
from ditpress.calibrate.calibration import Calibration
from ditpress.calibrate.calls import Call, load_calls, record_calls, save_calls
from ditpress.calibrate.statistics import STATISTICS, Statistic, Want

__all__ = [
    "STATISTICS",
    "BlockInputs",
    "Calibration",
    "Call",
    "Statistic",
    "Want",
    "load_calls",
    "record_calls",
    "save_calls",
]
