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
# # Train, evaluate, compare
#
# Two resamplers are trained on a handful of scenes and compared. Settings are so small that the whole notebook
# takes a minute or two, and its answers are poor: leave out the words in `SMALL` for a real comparison, and repeat
# it with several seeds.

# %%
import json
import subprocess
import sys
from pathlib import Path

import cv2
import pandas as pd
from IPython.display import Image

SMALL = ["+debug=default", "stage.run=[resampler,finetune]", "tracking=none"]


def run(command: str, *arguments: str) -> str:
    """``python -m panollava.<command>``; what it says."""
    line = [sys.executable, "-m", f"panollava.{command}", *arguments]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


# %% [markdown]
# ## Train
#
# `resampler=mlp` chooses an option of a group, `seed=1` sets a key. Each run is evaluated on the test split at its
# end.

# %%
for resampler in ("mlp", "perceiver"):
    said = run("train", f"resampler={resampler}", f"experiment_name={resampler}", "overwrite=true", *SMALL)
    print("\n".join(line for line in said.splitlines() if line.startswith("Stage finetune:")))

# %% [markdown]
# The same command again resumes a stopped run, or says that it is finished. The files of a run:

# %%
sorted(str(path) for path in Path("runs/mlp").glob("*/*/*") if path.suffix in {".json", ".yaml", ".csv", ".ckpt"})[:8]

# %%
pd.read_csv(next(Path("runs/mlp/finetune").glob("*/learning_curve.csv"))).tail(3)

# %%
picture = cv2.resize(cv2.imread("runs/mlp/views.png"), (640, 380), interpolation=cv2.INTER_AREA)
Image(cv2.imencode(".jpg", picture)[1].tobytes())

# %% [markdown]
# ## Evaluate
#
# The scores of the training's own evaluation, with 95 % intervals over pictures:

# %%
folder = sorted(Path("results/eval_results/mlp").glob("predictions_*"))[-1]
metrics = json.loads((folder / "metrics.json").read_text())
print(sorted(metrics))
pd.read_csv(folder / "predictions.csv")[["question", "prediction", "reference", "correct"]]

# %% [markdown]
# `python -m panollava.eval checkpoint=runs/mlp world_seed=7` evaluates on scenes of another seed, `csv_input=` on a
# file.

# %% [markdown]
# ## Compare
#
# `compare` tests the difference on the same questions. With one seed it speaks of these two trained models, not of
# the resamplers.

# %%
said = run("compare", "runs/mlp", "runs/perceiver", "tracking=none", "out=comparison")
print(said[said.index("|") :] if "|" in said else said)

# %% [markdown]
# ## A resampler of your own
#
# A class of a module or package that can be imported; its keywords are keys of the config, checked against its
# signature.

# %%
Path("my_parts.py").write_text(
    '''
from torch import nn


class Mean(nn.Module):
    """Averages the features of a view into one token."""

    def __init__(self, *, input_width: int, output_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_width, output_width)

    def token_count(self, grid):
        return 1

    def token_grid(self, grid):
        return (1, 1)

    def forward(self, features, *, grid, view_mask, cameras):
        return self.linear(features.mean(dim=2, keepdim=True))
'''
)
said = run("train", "resampler=my_parts:Mean", "experiment_name=mean", "overwrite=true", *SMALL)
print("\n".join(line for line in said.splitlines() if line.startswith("Stage finetune:")))
