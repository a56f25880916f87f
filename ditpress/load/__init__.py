"""What we work on: sources, pipelines, the denoiser, its anatomy, checkpoints.

Importing this package makes diffusers' ``from_pretrained`` know our pipelines and our quantized layers.
"""

from ditpress.callable_package import make_callable
from ditpress.load.anatomy import Anatomy, Role, SmoothGroup, anatomy_of
from ditpress.load.checkpoint import load_compressed, save_pipeline, save_transformer
from ditpress.load.denoiser import Denoiser, load_denoiser
from ditpress.load.pipelines import LatentDiTPipeline, PixelDiTPipeline, register_pipelines
from ditpress.load.quantizer import register_quantizer
from ditpress.load.source import Source, resolve
from ditpress.load.zoo import zoo_path

make_callable(__name__)
register_pipelines()
register_quantizer()

__all__ = [
    "Anatomy",
    "Denoiser",
    "LatentDiTPipeline",
    "PixelDiTPipeline",
    "Role",
    "SmoothGroup",
    "Source",
    "anatomy_of",
    "load_compressed",
    "load_denoiser",
    "resolve",
    "save_pipeline",
    "save_transformer",
    "zoo_path",
]
