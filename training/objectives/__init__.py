"""What a student can learn from: one module each, with its formula and where it comes from."""

from training.objectives.base import Networks, Objective
from training.objectives.causvid import CausVid
from training.objectives.consistency import Consistency
from training.objectives.dmd import DMD
from training.objectives.forcing import Forcing
from training.objectives.regression import Regression
from training.objectives.sid import SiD

OBJECTIVES: dict[str, type[Objective]] = {
    "forcing": Forcing,
    "regression": Regression,
    "dmd": DMD,
    "sid": SiD,
    "causvid": CausVid,
    "consistency": Consistency,
}

__all__ = ["OBJECTIVES", "Networks", "Objective"]
