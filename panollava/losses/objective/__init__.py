"""The objectives of stage 1, one file each, found by ``stage.vision.loss.type``."""
