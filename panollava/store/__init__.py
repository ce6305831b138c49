"""Features of a frozen encoder on disk: computed once, and shared by processes that run at the same time."""
