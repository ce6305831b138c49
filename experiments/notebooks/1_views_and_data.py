# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Views and data
#
# A panorama is cut into views before an encoder sees it. This notebook shows the views of some crops and what a
# data set gives to training. It needs no trained model and takes some seconds.

# %%
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from IPython.display import Image

from panollava.crop.crop import Crop
from panollava.data.world import WorldSource
from panollava.evaluation.gallery import gallery_picture, with_boxes, with_masks


def shown(picture: np.ndarray, width: int = 560) -> Image:
    """A picture (H, W, 3) uint8 RGB, scaled to a width."""
    scaled = cv2.resize(picture, (width, round(len(picture) * width / picture.shape[1])), interpolation=cv2.INTER_AREA)
    return Image(cv2.imencode(".jpg", scaled[..., ::-1])[1].tobytes())


# %% [markdown]
# ## A panorama
#
# The built-in world draws panoramas with questions whose answers are known. A file of your own is read by
# `crop.read(path)`.

# %%
world = WorldSource(split="test", scenes=3, height=512)
panorama = world.panorama(0)
shown(panorama)

# %% [markdown]
# ## Views
#
# A crop is a list of cameras. `overlap` is the share of a tile's angle that its neighbour shows too.

# %%
crop = Crop.from_spec({"type": "anyres_e2p", "fov_deg": 90.0, "overlap": 0.25}, view_size=(64, 64))
print(crop.summary)
angles = [(np.degrees(camera.yaw_rad), np.degrees(camera.pitch_rad), camera.is_global) for camera in crop.cameras]
pd.DataFrame(angles, columns=["yaw", "pitch", "whole panorama"]).round(1)

# %%
views = crop.views(panorama)  # (V, 3, h, w) uint8
print(tuple(views.shape), views.dtype)
shown(gallery_picture(panorama, views, crop.cameras, title="anyres_e2p, overlap 0.25"))

# %% [markdown]
# The cube map with poles sees every direction once.

# %%
cube = Crop.from_spec({"type": "cubemap", "poles": True}, view_size=(64, 64))
shown(gallery_picture(panorama, cube.views(panorama), cube.cameras, title="cubemap with poles"))

# %% [markdown]
# ## Questions and answers
#
# A record is a conversation about one panorama; evaluation asks each question on its own.

# %%
for question, answer in world.record(0, epoch=0).turns:
    print(f"{question}  ->  {answer}")

# %%
pd.DataFrame(
    [
        {"type": one.question_type, "question": one.question, "answer": one.references[0]}
        for one in world.questions()[:6]
    ]
)

# %% [markdown]
# ## Boxes and masks
#
# Boxes are `yaw, pitch, horizontal extent, vertical extent, roll` in degrees on the sphere.

# %%
places = world.places(0)
print(np.round(places.boxes.boxes[:3], 1))
shown(with_boxes(with_masks(panorama, places.pixels, world.class_names), places.boxes, world.class_names))

# %% [markdown]
# ## Your own data
#
# One CSV file a split, with the columns `url,query,annotation`. `python -m panollava.check data=csv
# data.dir=my_data` lists what is wrong with it.

# %%
folder = Path("my_data")
folder.mkdir(exist_ok=True)
cv2.imwrite(str(folder / "room.jpg"), panorama[..., ::-1])
rows = pd.DataFrame(
    {"url": ["room.jpg"] * 2, "query": ["what is behind?", "무엇이 보이나요?"], "annotation": ["a ring", "공"]}
)
for split in ("train", "val", "test"):
    rows.to_csv(folder / f"{split}.csv", index=False)
rows
