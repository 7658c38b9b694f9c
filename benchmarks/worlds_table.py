"""The table of what the quickstart of worlds reaches, from its summary (`benchmarks/figures.py`)."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A row: what it says, its figure, how figures are written, and which stand beside it."""

    said: str
    figure: str
    form: str
    guess: tuple[tuple[str, str], ...] = ()
    """Figures of guesses, and what they are."""
    codec: str = ""
    """Figure of the codec's round trip."""
    real: str = ""
    """Figure of real ones."""


SHARE, LENGTH = "{:.1%}", "{:.3f}"
ROWS = (
    Row("text to scene: right thing, among 100 shapes", "scene3d_object_accuracy", SHARE,
        (("scene3d_object_chance", "chance"), ("scene3d_object_nearest", "nearest training scene")),
        "scene3d_object_codec", "scene3d_object_originals"),
    Row("right colour", "scene3d_colour_accuracy", SHARE,
        (("scene3d_colour_chance", "chance"), ("scene3d_colour_nearest", "nearest training scene")),
        "scene3d_colour_codec", "scene3d_colour_originals"),
    Row("stands in a simulation", "scene3d_stands", SHARE, (), "scene3d_stands_codec", "scene3d_stands_real"),
    Row("loose cells", "scene3d_loose_voxels", "{:.2%}", (), "scene3d_loose_voxels_codec", "scene3d_loose_voxels_real"),
    Row("scene to text: right thing", "caption_scene3d_object_accuracy", SHARE,
        (("caption_scene3d_object_chance", "chance"),)),
    Row("right colour", "caption_scene3d_colour_accuracy", SHARE, (("caption_scene3d_colour_chance", "chance"),)),
    Row("relation of two things", "caption_scene3d_relation_accuracy", SHARE,
        (("caption_scene3d_relation_chance", "chance"),)),
    Row("image to scene: right thing", "scene3d_from_view_object_accuracy", SHARE,
        (("scene3d_from_view_object_chance", "chance"),), "scene3d_from_view_object_codec",
        "scene3d_from_view_object_originals"),
    Row("image to text: right thing", "caption_object_accuracy", SHARE, (("caption_object_chance", "chance"),)),
    Row("scene and text to motion: right event", "motion_event_accuracy", SHARE,
        (("motion_event_chance", "chance"), ("motion_event_shuffled", "another motion")), "motion_event_codec",
        "motion_event_originals"),
    Row("distance from the true motion, in sides of the cube", "motion_error", LENGTH,
        (("motion_error_still", "nothing moves"), ("motion_error_constant", "goes on as it began")),
        "motion_error_codec"),
    Row("of the body that is hit", "motion_error_second", LENGTH, (("motion_error_second_still", "nothing moves"),
        ("motion_error_second_constant", "goes on as it began")), "motion_error_second_codec"),
    Row("how deep bodies are in each other or the floor", "motion_penetration", "{:.4f}", (),
        "motion_penetration_codec", "motion_penetration_real"),
    Row("scene and motion to text: right event", "caption_motion_event_accuracy", SHARE,
        (("caption_motion_event_chance", "chance"),)),
)  # fmt: skip


def worlds(summary: Mapping[str, Any]) -> str:
    """Return the table, with the overlap that the codec keeps below it."""
    lines = ["| held out | model | guesses | codec's round trip | real |", "|---|---|---|---|---|"]
    for row in ROWS:
        if row.figure in summary:
            beside = "; ".join(
                f"{said} {row.form.format(summary[name])}" for name, said in row.guess if name in summary
            )
            ceilings = (row.form.format(summary[name]) if name in summary else "" for name in (row.codec, row.real))
            lines.append(f"| {row.said} | {row.form.format(summary[row.figure])} | {beside} | {' | '.join(ceilings)} |")
    iou, decibels = summary["scene3d_codec_iou"], summary["scene3d_codec_colour_psnr"]
    kept = f"overlap with held-out scenes (IoU) {iou:.2f}, colours {decibels:.1f} dB"
    lines += ["", f"The codec of scenes: {kept}."]
    return "\n".join(lines)
