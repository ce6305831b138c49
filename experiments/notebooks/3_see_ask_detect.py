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
# # See, ask, detect
#
# A trained model answers questions about a panorama, shows its attention and features as arrays, and finds boxes
# and masks. `RUN` is the folder of a run with all four stages, such as that of
# `python -m panollava.train "stage.run=[vision,resampler,finetune,detect]" crop=cubemap crop.poles=true`.
# Where it is missing, one is trained on a handful of scenes, whose answers are poor.

# %%
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from IPython.display import Image

from panollava import PanoLlava
from panollava.data.world import WorldSource
from panollava.evaluation.drawing import HEAT, heat
from panollava.evaluation.explain import TokenMap, answer_attention, attention_values, similarity, token_towards
from panollava.evaluation.gallery import with_boxes, with_masks

RUN = os.environ.get("PANOLLAVA_RUN", "runs/small")
if not Path(RUN).is_dir():
    stages = "stage.run=[vision,resampler,finetune,detect]"
    words = [stages, "+debug=default", "crop=cubemap", "crop.poles=true", "tracking=none", "experiment_name=small"]
    subprocess.run([sys.executable, "-m", "panollava.train", *words], check=True, capture_output=True)


def shown(picture: np.ndarray, width: int = 640) -> Image:
    """A picture (H, W, 3) uint8 RGB, scaled to a width."""
    scaled = cv2.resize(picture, (width, round(len(picture) * width / picture.shape[1])), interpolation=cv2.INTER_AREA)
    return Image(cv2.imencode(".jpg", scaled[..., ::-1])[1].tobytes())


# %% [markdown]
# ## Ask
#
# `image` may be a path, the content of a file, a PIL picture or an array.

# %%
pano = PanoLlava.from_pretrained(RUN)
world = WorldSource(split="test", scenes=2, height=512)
panorama = world.panorama(0)
shown(panorama)

# %%
asked = [one for one in world.questions()[:10] if not one.history]
answers = pano.generate_batch([panorama] * len(asked), [one.question for one in asked])
pd.DataFrame(
    [
        {"question": one.question, "answer": answer, "right": one.references[0]}
        for one, answer in zip(asked, answers, strict=True)
    ]
)

# %% [markdown]
# A conversation remembers its turns.

# %%
chat = pano.chat(panorama)
for question in ("what shape is the yellow solid?", "where is it?"):
    print(question, "->", chat.ask(question, max_new_tokens=16))

# %% [markdown]
# ## Attention as an array
#
# Attention of the answer to each token of each view, and the same over the panorama as a multiple of even
# attention. It shows from which directions the language model took values, not that the answer depends on them.

# %%
views = pano.views(panorama)
question = "what is behind?"
answer = pano.generate(panorama, question)
attention = answer_attention(pano, views, question, answer)
print(tuple(attention.weights.shape), f"{attention.image_share:.0%} of the attention goes to the panorama")
grid = pano.model.vision.token_grid
places = TokenMap(pano.crop.camera_rows, grid, (256, 512))
values = attention_values(attention, places)  # (256, 512), not a number where no view looks
shown(heat(cv2.resize(panorama, (512, 256)), values, HEAT, 0.0, float(values.nan_to_num().max())))

# %% [markdown]
# ## Features as an array
#
# The encoder's features of every patch, and their cosine similarity with one direction.

# %%
features = pano.features(views)  # (V, N, Dv)
print(tuple(features.shape))
patches = pano.model.vision.tower.grid
index, _ = token_towards(pano.crop.camera_rows, patches, 0.0, 0.0)
cosine = similarity(features.flatten(0, 1), index)
print(f"cosine with the direction ahead: {float(cosine.min()):.2f} to {float(cosine.max()):.2f}")

# %% [markdown]
# ## Boxes and masks

# %%
found = pano.detect(panorama, least_score=0.5)
pd.DataFrame([vars(one) for one in found]).round(2).head(8)

# %%
shown(with_boxes(with_masks(panorama, found.mask, found.names), found.boxes, found.names))
