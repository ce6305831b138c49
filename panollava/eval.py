"""python -m panollava.eval checkpoint=<run folder>: answers a split's questions and scores them."""

from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.logs import configure_console
from panollava.run.options import EvalOptions


@entrypoint("eval", positional=("checkpoint",), loose=("crop",))
def main(cfg: DictConfig) -> None:
    """Evaluates one run."""
    from panollava.run.sections import metrics_problems, read_config  # here, so that --help needs no PyTorch

    configure_console()
    options, sections = read_config(cfg, EvalOptions, check=metrics_problems)

    from panollava.run.reevaluation import evaluate_again

    evaluate_again(options, sections)


if __name__ == "__main__":
    main()
