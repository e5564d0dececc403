"""Labels of camera work and of motion that single frames do not show, with their wordings.

The first wording of a label is its name. ``held_out`` wordings are for evaluation only. A label reads the picture as a
viewer sees it: in a pan to the left the content moves to the right, and in a clockwise rotation the content turns
clockwise.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MotionLabel:
    key: str
    wordings: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.wordings[0]


def _label(key: str, wordings: str, held_out: str) -> MotionLabel:
    split = [tuple(text.strip() for text in texts.split("|")) for texts in (wordings, held_out)]
    return MotionLabel(key, split[0], split[1])


MOTION_LABELS: tuple[MotionLabel, ...] = (
    _label(
        "pan_left",
        "pan left | camera pans left | camera panning to the left | leftward pan | the camera turns left"
        " | left pan shot | view sweeps to the left",
        "panning shot to the left | the camera swings left",
    ),
    _label(
        "pan_right",
        "pan right | camera pans right | camera panning to the right | rightward pan | the camera turns right"
        " | right pan shot | view sweeps to the right",
        "panning shot to the right | the camera swings right",
    ),
    _label(
        "panning",
        "pan | panning | panning shot | camera pan | horizontal camera movement | the camera pans | sideways pan",
        "camera sweeping horizontally | horizontal panning",
    ),
    _label(
        "tilt_up",
        "tilt up | camera tilts up | camera tilting upwards | upward tilt | the camera looks up"
        " | tilt-up shot | view rises",
        "upward tilting shot | the camera swings upwards",
    ),
    _label(
        "tilt_down",
        "tilt down | camera tilts down | camera tilting downwards | downward tilt | the camera looks down"
        " | tilt-down shot | view sinks",
        "downward tilting shot | the camera swings downwards",
    ),
    _label(
        "tilting",
        "tilt | tilting | tilting shot | camera tilt | vertical camera movement | the camera tilts | vertical pan",
        "camera sweeping vertically | vertical tilting",
    ),
    _label(
        "zoom_in",
        "zoom in | camera zooms in | zooming in | zoom-in shot | the view gets closer | push in"
        " | dolly in | camera moving forward | camera approaching",
        "the camera closes in | slowly zooming into the scene",
    ),
    _label(
        "zoom_out",
        "zoom out | camera zooms out | zooming out | zoom-out shot | the view gets wider | pull out"
        " | dolly out | camera moving backward | camera pulling back",
        "the camera backs away | zooming out of the scene",
    ),
    _label(
        "zooming",
        "zoom | zooming | zoom shot | camera zoom | changing focal length | the camera zooms",
        "a shot with zoom | lens zoom",
    ),
    _label(
        "rotation_clockwise",
        "clockwise rotation | rotation clockwise | the picture rotates clockwise | picture turning clockwise"
        " | clockwise roll | image spins clockwise | view rotating to the right",
        "clockwise turning picture | rotating in clockwise direction",
    ),
    _label(
        "rotation_counterclockwise",
        "counter-clockwise rotation | rotation counterclockwise | the picture rotates counter-clockwise"
        " | picture turning anticlockwise | counter-clockwise roll | image spins anticlockwise"
        " | view rotating to the left",
        "anticlockwise turning picture | rotating in counter-clockwise direction",
    ),
    _label(
        "rotating",
        "rotation | camera roll | rotating camera | the picture rotates | rolling shot | rotating view | Dutch roll",
        "spinning camera | camera rotation about the lens axis",
    ),
    _label(
        "handheld_shake",
        "handheld shake | shaky camera | handheld camera | camera shake | shaking camera | jittery footage"
        " | unsteady camera | wobbly video",
        "shaky handheld footage | unstable camera work",
    ),
    _label(
        "static_shot",
        "static shot | static camera | fixed camera | the camera does not move | locked-off shot | tripod shot"
        " | stationary camera | still camera",
        "motionless camera | camera standing still",
    ),
    _label(
        "moving_camera",
        "moving camera | camera movement | the camera moves | camera in motion | moving shot | dynamic camera",
        "shot with a moving camera | mobile camera",
    ),
    _label(
        "fast_movement",
        "fast camera movement | fast movement | fast pan | quick camera move | rapid camera motion | whip pan"
        " | the camera moves fast | fast motion",
        "swift camera motion | hurried camera movement",
    ),
    _label(
        "slow_movement",
        "slow camera movement | slow movement | slow pan | gentle camera move | slow drift | creeping camera"
        " | the camera moves slowly",
        "gradual camera motion | slowly drifting camera",
    ),
    _label(
        "cut",
        "cut | scene change | hard cut | shot change | jump cut | edit between shots | change of shot | scene cut",
        "abrupt transition to another scene | several shots edited together",
    ),
    _label(
        "dissolve",
        "dissolve | cross-fade | crossfade | cross dissolve | blend between two scenes | soft transition"
        " | one picture melts into another",
        "gradual transition between scenes | overlapping transition",
    ),
    _label(
        "fade_in",
        "fade in | fade from black | fade-in from black | the picture appears out of black | opening fade"
        " | fades in from darkness",
        "emerging from a black screen | gradually lit from black",
    ),
    _label(
        "fade_out",
        "fade out | fade to black | fade-out to black | the picture disappears into black | closing fade"
        " | fades out into darkness",
        "vanishing into a black screen | gradually darkened to black",
    ),
    _label(
        "fading",
        "fade | fading | fade transition | black fade | fading picture | fade with black",
        "a fade at the start or end | fading through black",
    ),
    _label(
        "flash",
        "flash | flash of light | camera flash | sudden bright flash | lightning flash | a bright burst of light",
        "a sudden burst of brightness | photographic flash going off",
    ),
    _label(
        "flicker",
        "flicker | flickering light | strobe light | flickering picture | blinking light | unsteady brightness"
        " | stroboscopic light",
        "light that flickers | brightness jumping up and down",
    ),
    _label(
        "focus_in",
        "coming into focus | focus pull | the picture becomes sharp | blur to sharp | focusing | getting sharper",
        "the image sharpens | focus being found",
    ),
    _label(
        "focus_out",
        "going out of focus | defocus | the picture becomes blurred | sharp to blur | losing focus | getting blurry",
        "the image blurs | focus being lost",
    ),
    _label(
        "approaching",
        "approaching | something approaches | object coming closer | object approaching the camera"
        " | moving towards the camera | coming nearer",
        "drawing near the viewer | an object getting closer",
    ),
    _label(
        "receding",
        "receding | something recedes | object going away | object moving away from the camera"
        " | moving away | getting farther away",
        "withdrawing from the viewer | an object getting farther",
    ),
    _label(
        "moving_left",
        "moving left | object moving left | something moves to the left | moving from right to left"
        " | leftward motion | going left",
        "an object crossing leftwards | passing from right to left",
    ),
    _label(
        "moving_right",
        "moving right | object moving right | something moves to the right | moving from left to right"
        " | rightward motion | going right",
        "an object crossing rightwards | passing from left to right",
    ),
    _label(
        "moving_up",
        "moving up | object moving up | something rises | rising | upward motion | going up",
        "an object travelling upwards | ascending motion",
    ),
    _label(
        "moving_down",
        "moving down | object moving down | something falls | falling down | downward motion | going down",
        "an object travelling downwards | descending motion",
    ),
)

MOTION_KEYS: tuple[str, ...] = tuple(label.key for label in MOTION_LABELS)
COLUMN: dict[str, int] = {key: column for column, key in enumerate(MOTION_KEYS)}

_SIDEWAYS = (("pan_left", "pan_right"), ("moving_left", "moving_right"))
_UPRIGHT = (("tilt_up", "tilt_down"), ("moving_up", "moving_down"))
_ROTATION = (("rotation_clockwise", "rotation_counterclockwise"),)
_INWARDS = (("zoom_in", "zoom_out"), ("fade_in", "fade_out"), ("focus_in", "focus_out"), ("approaching", "receding"))


def _both_ways(pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return dict(pairs) | {there: here for here, there in pairs}


# Labels that become others when the frames are played backwards or when every frame is mirrored; the others stay.
REVERSED_KEYS = _both_ways(_SIDEWAYS + _UPRIGHT + _ROTATION + _INWARDS)
MIRRORED_KEYS = _both_ways(_SIDEWAYS + _ROTATION)
UPSIDE_DOWN_KEYS = _both_ways(_UPRIGHT + _ROTATION)


def exchanged_columns(keys: dict[str, str]) -> list[int]:
    return [COLUMN[keys.get(key, key)] for key in MOTION_KEYS]
