"""python -m panollava.compare <run> <run> …: which is better on the same questions, and is the difference real?"""

from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.run.options import CompareOptions


@entrypoint("compare", positional=("runs[]",))
def main(cfg: DictConfig) -> None:
    """Compares runs."""
    from panollava.run.sections import read_config  # here, so that --help needs no PyTorch

    options, sections = read_config(cfg, CompareOptions)

    from panollava.run.comparison import compare_runs

    compare_runs(options, sections)


if __name__ == "__main__":
    main()
