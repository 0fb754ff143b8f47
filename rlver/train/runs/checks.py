"""What is wrong with a run, before anything long begins."""

from __future__ import annotations

from pathlib import Path

from rlver.inference.model_folder import pick_device
from rlver.train.config import TrainConfig
from rlver.train.credit import Reward, reward_name
from rlver.train.runs.participants import evaluation_profiles, training_profiles
from rlver.train.runs.run_folder import check_folder
from rlver.train.runs.trackers import check_trackers


def check_start(config: TrainConfig, folder: Path, resume: bool = False, reward: Reward | None = None) -> None:
    """Check everything that can be checked before the base policy is pretrained, which takes minutes.

    Raises:
        RlverError: a file of profiles, a tracker or the device cannot be used, or the folder holds something else.
    """
    check_inputs(config)
    check_folder(folder, config, resume, reward_name(reward) if reward else None)
    pick_device(config.device, Path(config.policy))


def check_inputs(config: TrainConfig) -> None:
    """Check the files of profiles and the trackers. Raises RlverError if one cannot be used."""
    training_profiles(config)
    evaluation_profiles(config)
    check_trackers(config.trackers)
