"""The shipped miniature backbones, and the script that trains them on the built-in world."""
