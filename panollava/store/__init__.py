"""Features of a frozen encoder on disk: made once, recognised again, shared by all that run side by side."""
