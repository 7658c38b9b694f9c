"""A drive behind a lorry."""

import numpy as np

from plait.driving.simulate import drive
from plait.driving.world import vehicle

scene = np.zeros((16, 8), np.float32)
scene[:2] = [vehicle("car", 0, 1, 25), vehicle("lorry", 60, 1, 10)]
(run,) = drive([scene], "idm")
assert not run.crashed and run.distance > 50
