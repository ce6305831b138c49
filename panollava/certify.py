"""python -m panollava.certify checkpoint=<run folder>: which changes of a panorama change a model's answers."""

from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint


@entrypoint("certify", positional=("checkpoint",), loose=("crop",))
def main(cfg: DictConfig) -> None:
    """Certifies one run."""
    from panollava.run.certify import CertifyOptions, certify  # here, so that --help needs no PyTorch
    from panollava.run.sections import read_config

    options, sections = read_config(cfg, CertifyOptions)
    certify(options, sections)


if __name__ == "__main__":
    main()
