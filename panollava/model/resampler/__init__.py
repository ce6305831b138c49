"""Resamplers, one module each: the features of every view become the tokens the language model reads."""
