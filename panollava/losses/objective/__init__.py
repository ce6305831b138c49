"""What stage 1 can minimise, one file each, found by ``stage.vision.loss.type``."""
