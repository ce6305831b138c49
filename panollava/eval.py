"""python -m panollava.eval checkpoint=<run folder>: answers a split's questions, or a benchmark's, and scores them."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from panollava.config.command_line import CONF
from panollava.config.entrypoint import entrypoint
from panollava.run.options import OF_CAPTIONS, BenchmarkFolder, EvalOptions

OF_QUESTIONS = (
    "split", "csv_input", "score_by", "world_seed", "world_level", "world_scenes", "turn_deg", "loss", "meteor", "clip",
    "metrics",
)  # fmt: skip
"""Keys without an effect on a public benchmark, beside ``evaluation.measure`` and, for most, ``words``."""


@entrypoint("eval", positional=("checkpoint",), loose=("crop",))
def main(cfg: DictConfig) -> None:
    """Evaluates one run."""
    from panollava.run.sections import read_config  # here, so that --help needs no PyTorch

    options, sections = read_config(cfg, EvalOptions, check=_problems)

    from panollava.run.reevaluation import evaluate_again

    evaluate_again(options, sections)


def _problems(values: dict[str, Any]) -> list[str]:
    """Problems of the keys together."""
    from panollava.config.check import check_section
    from panollava.run.sections import metrics_problems

    found = check_section(values["data"], BenchmarkFolder, "data")
    given = {"data.dir": values["data"]["dir"], **{key: values[key] for key in ("benchmark_files", "images")}}
    named = [key for key, value in given.items() if value is not None]
    if (benchmark := values["benchmark"]) is None:
        if named:
            found.append(
                f"{', '.join(named)}: no effect without benchmark=, the name of the set. Name it, or leave this out; a "
                "file of questions is csv_input=<file>."
            )
        return found + metrics_problems(values)
    defaults: Any = OmegaConf.load(Path(CONF) / "eval.yaml")
    idle = [key for key in OF_QUESTIONS if values[key] != defaults[key]]
    idle += ["words"] if values["words"] is not None and benchmark != OF_CAPTIONS else []
    idle += ["evaluation.measure"] if values["evaluation"]["measure"] is not None else []
    if idle:
        found.append(f"{', '.join(idle)}: no effect with benchmark={benchmark}. Leave it out, or leave benchmark= out.")
    if given["data.dir"] is None and given["benchmark_files"] is None:
        found.append("data.dir is missing: name the folder with the set's files, as its authors ship them.")
    return found


if __name__ == "__main__":
    main()
