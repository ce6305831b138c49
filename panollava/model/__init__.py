"""Vision encoder, resampler, position code, projector and language model, as a Hugging Face model."""
