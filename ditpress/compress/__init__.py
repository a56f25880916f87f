"""The doing: one method per file, each a stage that a recipe can name."""

from ditpress.compress.quantize.stage import Quantize
from ditpress.compress.smooth import Smooth
from ditpress.compress.stage import STAGES, LayerFormat, Stage, check_order, parse_stage, register_stage

__all__ = ["STAGES", "LayerFormat", "Quantize", "Smooth", "Stage", "check_order", "parse_stage", "register_stage"]
