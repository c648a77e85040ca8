"""Index, check, analyse and cache a cohort."""

import hydra
from omegaconf import DictConfig

from flare.runs.door import command


@command
@hydra.main(version_base="1.3", config_path="conf", config_name="prepare")
def main(cfg: DictConfig) -> object:
    """Do the work in `flare.prepare.cohort` and return its result."""
    from flare.prepare.cohort import prepare

    return prepare(cfg)


if __name__ == "__main__":
    main()
