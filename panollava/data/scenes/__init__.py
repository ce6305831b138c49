"""The built-in world: its scenes, how they are drawn, and the questions about them."""
