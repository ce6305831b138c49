"""python -m panollava.train: trains the stages of a run, one after the other, and evaluates the result."""

from pathlib import Path

from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint


def announce(cfg: DictConfig) -> list[str]:
    """What a sweep that is about to start can see."""
    from panollava.run.sweep_design import announcement

    return announcement(cfg)


def report(folder: Path) -> list[Path]:
    """Writes the report of a sweep's folder."""
    from panollava.run.sweep_report import sweep_report

    return sweep_report(folder)


def load() -> None:
    """Imports the slow modules; a launcher's process does so once for all of its jobs."""
    import panollava.run.evaluate
    import panollava.run.stage  # noqa: F401


@entrypoint("train", announce=announce, report=report, load=load)
def main(cfg: DictConfig) -> float | None:
    """Trains what ``stage.run`` lists, and returns the measure of the test split; see ``final_score``."""
    # Here, and not above: help, a misspelt key and the parent of a sweep can do without PyTorch, and a wrong value
    # without transformers.
    from panollava.run.config_check import checked

    cfg = checked(cfg)  # every key, type and range, before anything is opened

    from panollava.run.evaluate import evaluate_run, final_score, keep_model, summarize
    from panollava.run.evaluate_places import evaluate_run_places
    from panollava.run.plan import log_plan
    from panollava.run.preflight import preflight
    from panollava.run.run import open_run, plans_only
    from panollava.run.stage import run_stage
    from panollava.training.distributed import init_distributed

    ranks = init_distributed(device=cfg.trainer.device, timeout_s=cfg.trainer.process_timeout_s)
    with ranks as procs, open_run(cfg, procs) as run:  # folder, log, data, backbones
        preflight(run)  # what can fail fails here, before the first step
        if plans_only(cfg):
            log_plan(run)
            return final_score(run)
        trained = None
        for name in run.pending:
            trained = run_stage(run, name) or trained
        evaluate_run(run, trained)
        evaluate_run_places(run)
        keep_model(run)  # last: nothing waits while a server takes it
        if cfg.dry_run:
            log_plan(run)
        summarize(run)
        return final_score(run)


if __name__ == "__main__":
    main()
