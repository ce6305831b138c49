"""Train on a data set of your own: python experiments/examples/custom_training.py

Colours stands for your data: give each record its conversation and its panorama. The same command again resumes.
"""

import sys

import numpy as np

from panollava import PanoLlava, Trainer
from panollava.data.source import DataSource, Record
from panollava.logs import LOG

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 200)}


class Colours(DataSource):
    def __init__(self, name, count):
        self.name, self.colours = name, [list(COLOURS)[index % 3] for index in range(count)]

    def __len__(self):
        return len(self.colours)

    def record(self, index, epoch):
        return Record(f"{self.name}-{index}", turns=(("which colour is the room?", self.colours[index]),))

    def picture(self, index):  # a file's path, or a text that says how it is drawn
        return f"a room in {self.colours[index]}"

    def panorama(self, index):
        return np.full((256, 512, 3), COLOURS[self.colours[index]], np.uint8)


def main(folder="runs/colours", count=48, epochs=2):
    pano = PanoLlava.from_backbones("panollava/tiny-siglip", "panollava/tiny-qwen3", latent_width=128)
    Trainer(pano, Colours("train", count), Colours("val", 12), folder=folder, epochs=epochs).fit()
    LOG.info(pano.generate(Colours("test", 1).panorama(0), "which colour is the room?"))
    pano.save_pretrained(f"{folder}/export")


if __name__ == "__main__":
    main(*sys.argv[1:])
