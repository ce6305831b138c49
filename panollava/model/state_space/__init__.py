"""The bidirectional state-space layer, and the scan that it computes."""
