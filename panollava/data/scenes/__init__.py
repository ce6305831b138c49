"""The built-in world: what stands where, how it looks, and what can be asked about it."""
