"""Tables of models that act: every figure that a summary has, each with its interval."""

from trials_table import drivers, robots


def test_who_succeeds_how_often():
    summary = {"success": 0.9, "success_low": 0.82, "success_high": 0.95, "success_count": 100, "success_random": 0.04,
               "success/door-open-v3": 1.0, "success/door-open-v3_low": 0.7, "seconds_per_action": 0.02}  # fmt: skip
    table = robots(summary)
    assert "| the model | 90% | 82% to 95% | 100 |" in table and "| random actions | 4% |  |  |" in table
    assert "By task: door-open 100%. 50 actions a second" in table and "plain network" not in table


def test_who_crashes_how_often_and_what_scenes_are():
    summary = {"drive_crash_rate": 0.1, "drive_crash_rate_low": 0.05, "drive_crash_rate_high": 0.2,
               "drive_crash_rate_count": 100, "drive_speed": 16.04, "traffic_event_accuracy": 0.5,
               "traffic_event_codec": 1.0, "traffic_event_originals": 0.99, "traffic_idm_crash_rate": 0.2,
               "traffic_idm_crash_rate_real": 0.0, "traffic_idm_speed": 17.3}  # fmt: skip
    table = drivers(summary)
    assert "| the model, told to drive as fast as is safe | 10% | 5% to 20% | 100 | 16.0 |" in table
    assert "| all that the caption says happens, and nothing else | 50% | 100% | 99% |  |" in table
    assert "| highway-env's own driver crashes | 20% |  | 0% |  |" in table and "| its speed, m/s | 17.3 |" in table
