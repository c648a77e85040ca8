"""Carry a cohort through all rounds."""

import hydra
from omegaconf import DictConfig

from flare.runs.door import command


@command
@hydra.main(version_base="1.3", config_path="conf", config_name="iterate")
def main(cfg: DictConfig) -> object:
    """Do the work in `flare.cli.iterate_rounds` and return its result."""
    from flare.cli import iterate_rounds

    return iterate_rounds(cfg)


if __name__ == "__main__":
    main()
