"""The objectives of stage 1, and the diagnostics that show whether features have collapsed."""
