"""Data sets: records and questions, readers, and the batches made of them."""
