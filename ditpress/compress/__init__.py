"""The doing: one method per file, each a stage that a recipe can name."""

from ditpress.callable_package import make_callable
from ditpress.compress.allocate.stage import Mixed
from ditpress.compress.distill.guidance_stage import DistillGuidance
from ditpress.compress.distill.stage import Distill
from ditpress.compress.distill.tune_stage import Tune
from ditpress.compress.prune.depth_stage import PruneDepth
from ditpress.compress.prune.width_stage import PruneWidth
from ditpress.compress.quantize.stage import Quantize
from ditpress.compress.quantize.ternary_stage import Ternary
from ditpress.compress.quantize.vq_stage import VectorQuantize
from ditpress.compress.rotate import Rotate
from ditpress.compress.smooth import Smooth
from ditpress.compress.stage import STAGES, Stage, check_order, parse_stage, register_stage
from ditpress.compress.subspace import SubspaceStage

make_callable(__name__)

__all__ = [
    "STAGES",
    "Distill",
    "DistillGuidance",
    "Mixed",
    "PruneDepth",
    "PruneWidth",
    "Quantize",
    "Rotate",
    "Smooth",
    "Stage",
    "SubspaceStage",
    "Ternary",
    "Tune",
    "VectorQuantize",
    "check_order",
    "parse_stage",
    "register_stage",
]
