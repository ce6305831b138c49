"""PanoLLaVA: an open experiment platform for panoramic (360°) vision-language models."""
