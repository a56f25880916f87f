"""What we work on: sources, pipelines, the denoiser, its anatomy, checkpoints.

Importing this package makes diffusers' ``from_pretrained`` know our pipelines.
"""

from ditpress.load.anatomy import Anatomy, Role, SmoothGroup, anatomy_of
from ditpress.load.denoiser import Denoiser, load_denoiser
from ditpress.load.pipelines import LatentDiTPipeline, PixelDiTPipeline, register_pipelines
from ditpress.load.source import Source, resolve
from ditpress.load.zoo import zoo_path

register_pipelines()

__all__ = [
    "Anatomy",
    "Denoiser",
    "LatentDiTPipeline",
    "PixelDiTPipeline",
    "Role",
    "SmoothGroup",
    "Source",
    "anatomy_of",
    "load_denoiser",
    "resolve",
    "zoo_path",
]
