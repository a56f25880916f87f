"""The doing: one method per file, each a stage that a recipe can name."""

from ditpress.callable_package import make_callable
from ditpress.compress.quantize.stage import Quantize
from ditpress.compress.rotate import Rotate
from ditpress.compress.smooth import Smooth
from ditpress.compress.stage import STAGES, Stage, check_order, parse_stage, register_stage
from ditpress.compress.subspace import SubspaceStage

make_callable(__name__)

__all__ = [
    "STAGES",
    "Quantize",
    "Rotate",
    "Smooth",
    "Stage",
    "SubspaceStage",
    "check_order",
    "parse_stage",
    "register_stage",
]
