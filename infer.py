"""Segment CT images."""

import hydra
from omegaconf import DictConfig

from flare.runs.door import command


@command
@hydra.main(version_base="1.3", config_path="conf", config_name="infer")
def main(cfg: DictConfig) -> object:
    """Do the work in `flare.cli.infer_cases` and return its result."""
    from flare.cli import infer_cases

    return infer_cases(cfg)


if __name__ == "__main__":
    main()
