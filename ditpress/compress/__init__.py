"""The doing: one method per file, each a stage that a recipe can name."""

from ditpress.callable_package import make_callable
from ditpress.compress.quantize.stage import Quantize
from ditpress.compress.smooth import Smooth
from ditpress.compress.stage import STAGES, Stage, check_order, parse_stage, register_stage

make_callable(__name__)

__all__ = [
    "STAGES",
    "Quantize",
    "Smooth",
    "Stage",
    "check_order",
    "parse_stage",
    "register_stage",
]
