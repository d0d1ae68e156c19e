"""The typed schema of a run, one file per group of ``conf/``. Imports nothing heavy: it works before torch is loaded.

The YAML groups hold the values and say where they come from; the classes here say which keys exist and what they may
hold. A method's own keys live in its file (``ogpsa/methods``).
"""

from ogpsa.config.data import HELD_OUT, Data, FileData, TestbedData
from ogpsa.config.distributed import Distributed, Mode
from ogpsa.config.eval import Backend, EndpointSettings, Evaluation, JudgeSettings, ModelEndpoint
from ogpsa.config.identity import identity_key, identity_name, identity_of, is_inert, without_inert
from ogpsa.config.messages import describe
from ogpsa.config.method import (
    ExtraMemory,
    Method,
    Quantization,
    SetUse,
    missing_stage_values,
    mixed_in,
    mode_problems,
    sample_problems,
    set_name_problems,
    stage_value,
)
from ogpsa.config.model import BaseTraining, Model, Precision
from ogpsa.config.problems import config_problems
from ogpsa.config.reward import NO_JUDGES, Judges, Reward, RewardServices, Rollout, Scorer
from ogpsa.config.run import Config
from ogpsa.config.section import PathText, Section
from ogpsa.config.stage import DPOSettings, GRPOSettings, OneStage, Optimizer, SFTSettings, StageName, StageSettings
from ogpsa.config.tracker import Tracker

__all__ = [
    "HELD_OUT", "NO_JUDGES", "Backend", "BaseTraining", "Config", "DPOSettings", "Data", "Distributed",
    "EndpointSettings", "Evaluation", "ExtraMemory", "FileData", "GRPOSettings", "JudgeSettings", "Judges", "Method",
    "Mode", "Model", "ModelEndpoint", "OneStage", "Optimizer", "PathText", "Precision", "Quantization", "Reward",
    "RewardServices", "Rollout", "SFTSettings", "Scorer", "Section", "SetUse", "StageName", "StageSettings",
    "TestbedData", "Tracker", "config_problems", "describe", "identity_key", "identity_name",
    "identity_of", "is_inert", "missing_stage_values", "mixed_in", "mode_problems", "sample_problems",
    "set_name_problems", "stage_value", "without_inert",
]  # fmt: skip
