"""Vision encoder, resampler, position code, projector and language model, joined the Hugging Face way."""
