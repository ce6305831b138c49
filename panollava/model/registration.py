"""Importing this module makes transformers' Auto classes and ``pipeline`` know PanoLlava exports."""

from __future__ import annotations

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from panollava.model.processor import PanoLlavaImageProcessor, PanoLlavaProcessor
from panollava.model.vlm import PanoLlavaConfig, PanoLlavaForConditionalGeneration

AutoConfig.register("panollava", PanoLlavaConfig, exist_ok=True)
AutoModelForImageTextToText.register(PanoLlavaConfig, PanoLlavaForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(
    PanoLlavaConfig, image_processor_classes={"torchvision": PanoLlavaImageProcessor}, exist_ok=True
)
AutoProcessor.register(PanoLlavaConfig, PanoLlavaProcessor, exist_ok=True)
