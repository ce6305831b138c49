"""From config to objects: the only room that knows all the others."""
