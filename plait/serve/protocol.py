"""What requests may say, field by field, after OpenAI's API. An unknown field is refused by its name.

Fields that OpenAI has and this server has no use for may stand at the value that changes nothing. plait's own fields,
such as guidance_scale, are named as diffusers and other servers name them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_CHOICES = 16


class Strict(BaseModel):
    """A record that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid")


class TextItem(Strict):
    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    url: str = Field(description="data:image/png;base64,...; nothing is fetched, and no file of the server is read")
    detail: Literal["auto", "low", "high"] = "auto"


class ImageItem(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Strict):
    data: str = Field(description="base64")
    format: str = Field("wav", pattern=r"^[A-Za-z0-9]{1,8}$")


class AudioItem(Strict):
    type: Literal["input_audio"]
    input_audio: InputAudio


class FileData(Strict):
    file_data: str = Field(description="base64, or data:model/gltf-binary;base64,...")
    filename: str = Field("", max_length=255, description="its suffix says how it is read, such as chair.glb")


class FileItem(Strict):
    """A file of any kind that the model reads, such as a scene."""

    type: Literal["file"]
    file: FileData


ContentItem = Annotated[TextItem | ImageItem | AudioItem | FileItem, Field(discriminator="type")]


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentItem]
    name: str | None = None


class StreamOptions(Strict):
    include_usage: bool = False


class AudioOptions(Strict):
    voice: Literal["default"] = "default"
    format: Literal["wav", "flac", "mp3", "opus", "pcm16"] = "wav"


class Sampling(Strict):
    """What all endpoints that make something share."""

    model: str = Field("", description="the name that /v1/models says; empty: that one")
    seed: int | None = Field(None, ge=0, lt=2**63, description="the same seed gives the same answer; unset: a new one")
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    guidance_scale: float | None = Field(None, ge=-100, le=100, description="classifier-free guidance; 1 is none")
    num_inference_steps: int | None = Field(None, ge=1, le=1000, description="denoising steps")
    user: str | None = None


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    modalities: list[str] = Field(["text"], min_length=1, description="one: answer in it; several: the model chooses")
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    previews: int = Field(0, ge=0, le=100, description="looks at an image on its way from noise, in a stream")
    audio: AudioOptions | None = None
    html: bool = Field(False, description="beside files that are no image and no sound, HTML that shows them")
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logprobs: bool | None = Field(None, description="log-probabilities of the text's tokens, before temperature")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="likeliest tokens beside each")
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None


class ImageRequest(Sampling):
    """POST /v1/images/generations."""

    prompt: str = Field(min_length=1)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    size: str | None = Field(None, description="WIDTHxHEIGHT, which must be what the model makes; or auto")
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto"] | None = None


class SpeechRequest(Sampling):
    """POST /v1/audio/speech."""

    input: str = Field(min_length=1)
    voice: Literal["default"] = "default"
    response_format: Literal["wav", "flac", "mp3", "opus", "pcm"] = "wav"
    speed: Literal[1] | None = None


class TranscriptionFields(Sampling):
    """The fields of POST /v1/audio/transcriptions besides its file."""

    response_format: Literal["json", "text"] = "json"


class EditFields(Sampling):
    """The fields of POST /v1/images/edits besides its images."""

    prompt: str = Field(min_length=1)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    size: str | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"


def sampling_options(fields: Sampling) -> dict[str, Any]:
    """Return the settings of sampling that a request names, as `plait.config.shipped.sampling_from` calls them."""
    values = {
        "temperature": fields.temperature, "top_p": fields.top_p, "top_k": fields.top_k,
        "guidance": fields.guidance_scale, "steps": fields.num_inference_steps,
    }  # fmt: skip
    return {name: value for name, value in values.items() if value is not None}


CALLED = {"guidance": "guidance_scale", "steps": "num_inference_steps"}
"""Names of settings in requests, where they differ from plait's own."""
