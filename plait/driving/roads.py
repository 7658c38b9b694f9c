"""A traffic scene on highway-env's straight road. Only this file imports highway-env, only `highway` imports this file.

Other vehicles drive by highway-env's IDM (the Intelligent Driver Model) along the road; across it they go to the lane
that the scene says and to no other, so that a scene decides its future. Ego is one of highway-env's own vehicles.
"""

import functools
import math
from typing import Any

import numpy as np
from highway_env.envs.highway_env import HighwayEnv
from highway_env.road.road import Road, RoadNetwork
from highway_env.vehicle.behavior import IDMVehicle
from highway_env.vehicle.controller import MDPVehicle

from plait.codecs.traffic import HEADING, KINDS, LANE_WIDTH, LENGTH, SPEED, TARGET_SPEED, TARGET_Y, WIDTH, X, Y, present

START = 1000.0
"""Where ego starts on highway-env's road, in metres."""
SPEED_LIMIT = 30.0
TARGET_SPEEDS = np.linspace(0, 30, 7)
"""Between which FASTER and SLOWER choose."""
_ROAD = ("0", "1")
_NEAR = 15.0  # vehicles farther from each other cannot meet within a step


class StraightNetwork(RoadNetwork):
    """Parallel lanes, of which the closest one is found by rounding: what highway-env finds by trying all."""

    def get_closest_lane_index(self, position: np.ndarray, heading: float | None = None) -> tuple[str, str, int]:
        last = len(self.graph[_ROAD[0]][_ROAD[1]]) - 1
        return (*_ROAD, min(max(math.ceil(position[1] / LANE_WIDTH - 0.5), 0), last))


class StraightRoad(Road):
    """The vehicles on parallel lanes, whose neighbours are found by comparing numbers."""

    def neighbour_vehicles(self, vehicle: Any, lane_index: tuple[str, str, int] | None = None) -> tuple[Any, Any]:
        """Return the vehicles ahead and behind in a lane, those near its borders too, as highway-env does."""
        place, across = vehicle.position[0], LANE_WIDTH * (lane_index or vehicle.lane_index)[2]
        front, rear, nearest, last = None, None, math.inf, -math.inf
        for other in self.vehicles:
            if other is vehicle or abs(other.position[1] - across) > LANE_WIDTH / 2 + 1:
                continue
            x = other.position[0]
            if place <= x <= nearest:
                front, nearest = other, x
            elif last < x < place:
                rear, last = other, x
        return front, rear

    def step(self, dt: float) -> None:
        """Move all vehicles, and let ego meet those near it: others do not look for collisions."""
        for vehicle in self.vehicles:
            vehicle.step(dt)
        ego = self.vehicles[0]
        for other in self.vehicles[1:]:
            if abs(other.position[0] - ego.position[0]) < _NEAR:
                ego.handle_collisions(other, dt)


class Other(IDMVehicle):
    """A vehicle that is not ego: IDM, and highway-env's steering towards its target lane, in plain numbers."""

    lane_index: tuple[str, str, int]

    def act(self, action: Any = None) -> None:
        if self.crashed:
            return
        front, _ = self.road.neighbour_vehicles(self)
        acceleration = self.wanted(front)
        if self.lane_index != self.target_lane_index:
            front, _ = self.road.neighbour_vehicles(self, self.target_lane_index)
            acceleration = min(acceleration, self.wanted(front))
        self.action = {
            "steering": self.steering_control(self.target_lane_index),
            "acceleration": min(max(acceleration, -self.ACC_MAX), self.ACC_MAX),
        }

    def wanted(self, front: Any) -> float:
        """Return the acceleration of IDM behind a vehicle or on a free lane; from a long one it stays farther away."""
        goal = min(max(self.target_speed, 0.01), SPEED_LIMIT)
        speed = max(float(self.speed), 0.0)
        acceleration = self.COMFORT_ACC_MAX * (1 - (speed / goal) ** self.DELTA)
        if front is not None:
            distance = float(front.position[0] - self.position[0]) - (front.LENGTH + self.LENGTH) / 2 + 5
            c, s = math.cos(self.heading), math.sin(self.heading)
            ahead = float(front.speed) * (math.cos(front.heading) * c + math.sin(front.heading) * s)
            closing = float(self.speed) - ahead
            root = 2 * math.sqrt(-self.COMFORT_ACC_MAX * self.COMFORT_ACC_MIN)
            gap = self.DISTANCE_WANTED + self.speed * self.TIME_WANTED + self.speed * closing / root
            acceleration -= self.COMFORT_ACC_MAX * (float(gap) / (distance if abs(distance) > 0.01 else 0.01)) ** 2
        return acceleration

    def steering_control(self, target_lane_index: tuple[str, str, int]) -> float:
        speed = self.speed if abs(self.speed) > 0.01 else math.copysign(0.01, self.speed)
        aside = float(self.position[1]) - LANE_WIDTH * target_lane_index[2]
        wanted = math.asin(min(max(-self.KP_LATERAL * aside / speed, -1.0), 1.0))
        wanted = min(max(wanted, -math.pi / 4), math.pi / 4)
        turn = (wanted - self.heading + math.pi) % (2 * math.pi) - math.pi
        slip = math.asin(min(max(self.LENGTH / 2 / speed * self.KP_HEADING * turn, -1.0), 1.0))
        angle = math.atan(2 * math.tan(slip))
        return min(max(angle, -self.MAX_STEERING_ANGLE), self.MAX_STEERING_ANGLE)

    def step(self, dt: float) -> None:
        if self.crashed or self.impact is not None:
            super().step(dt)
            return
        self.timer += dt
        beta = math.atan(math.tan(self.action["steering"]) / 2)
        self.position[0] += self.speed * math.cos(self.heading + beta) * dt
        self.position[1] += self.speed * math.sin(self.heading + beta) * dt
        self.heading += self.speed * math.sin(beta) / (self.LENGTH / 2) * dt
        self.speed += self.action["acceleration"] * dt
        self.lane_index = self.road.network.get_closest_lane_index(self.position)
        self.lane = self.road.network.get_lane(self.lane_index)


@functools.cache
def network_of(lanes: int) -> StraightNetwork:
    """Return highway-env's straight road."""
    return RoadNetwork.straight_road_network(lanes, speed_limit=SPEED_LIMIT, net=StraightNetwork())


def road_of(scene: np.ndarray, lanes: int, ego_class: type, **ego_settings: Any) -> tuple[StraightRoad, Any]:
    """Return a road with the vehicles of a scene, ego first, and ego, which alone looks for collisions."""
    road = StraightRoad(network_of(lanes), np_random=np.random.RandomState(0))
    for row in scene[present(scene)].astype(float):
        is_ego = not road.vehicles
        settings = ego_settings if is_ego else {"timer": 0.5, "target_speed": max(row[TARGET_SPEED], 0.01)}
        lane = (*_ROAD, round(row[TARGET_Y] / LANE_WIDTH))
        vehicle = (ego_class if is_ego else Other)(
            road, (START + row[X], row[Y]), row[HEADING], row[SPEED], target_lane_index=lane, **settings
        )
        vehicle.LENGTH, vehicle.WIDTH = row[LENGTH], row[WIDTH]
        vehicle.diagonal = math.hypot(row[LENGTH], row[WIDTH])
        vehicle.check_collisions = is_ego
        road.vehicles.append(vehicle)
    return road, road.vehicles[0]


def steady_ego(scene: np.ndarray, lanes: int, *, changes_lanes: bool, wants: float = SPEED_LIMIT) -> tuple[Any, Any]:
    """Return a road whose ego is highway-env's IDMVehicle."""
    return road_of(scene, lanes, IDMVehicle, enable_lane_change=changes_lanes, timer=0.01, target_speed=wants)


def driven_ego(scene: np.ndarray, lanes: int) -> tuple[Any, Any]:
    """Return a road whose ego obeys meta-actions: highway-env's MDPVehicle."""
    goal = float(scene[0, TARGET_SPEED])
    return road_of(scene, lanes, MDPVehicle, target_speeds=TARGET_SPEEDS, target_speed=goal)


class SceneEnv(HighwayEnv):
    """highway-env's highway with the vehicles of a scene, for Gymnasium.

    ``env.reset(options={"config": {"scene": scene}})`` loads one; without it ego is alone. Actions are meta-actions,
    twice a second.
    """

    @classmethod
    def default_config(cls) -> dict[str, Any]:
        return super().default_config() | {
            "lanes_count": 4, "simulation_frequency": 10, "policy_frequency": 2, "duration": 10, "scene": None,
            "action": {"type": "DiscreteMetaAction", "target_speeds": TARGET_SPEEDS.tolist()},
        }  # fmt: skip

    def _reset(self) -> None:
        scene = self.config["scene"]
        if scene is None:
            scene = np.array([[0, LANE_WIDTH, 25, 0, *KINDS["car"], 25, LANE_WIDTH]])
        self.road, ego = driven_ego(np.asarray(scene), self.config["lanes_count"])
        self.controlled_vehicles = [ego]
