"""Images and sound by OpenAI's endpoints: generations, edits, speech, transcriptions."""

import time
from typing import Any, TypeVar

from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from plait.common.errors import ConfigError, DataError, require, unknown
from plait.serve.media import SOUND_FORMATS, base64_of, file_of, image_bytes, sound_bytes
from plait.serve.protocol import EditFields, ImageRequest, SpeechRequest, Strict, TranscriptionFields
from plait.serve.service import Answers, Service

F = TypeVar("F", bound=Strict)


async def start_images(service: Service, fields: ImageRequest | EditFields, images: list[Any]) -> Answers:
    """Begin to make images from a text, and from images before it."""
    output = service.modality("image", "model")
    _check_image_size(service, output, fields.size)
    prompt = await service.read([*images, fields.prompt])
    return service.start(prompt, output, fields, n=fields.n)


def _check_image_size(service: Service, output: str, size: str | None) -> None:
    """Refuse a size that the model does not make: its images have the size that their codec says."""
    side = getattr(service.pipeline.codecs[output].options, "size", None)
    allowed = ["auto", *([f"{side}x{side}"] if isinstance(side, int) else [])]
    require(size in (None, *allowed), "size", size, " or ".join(allowed))


async def images(service: Service, fields: ImageRequest | EditFields, answers: Answers) -> Response:
    """Return images once they are made."""
    ends = await answers.all()
    made = await service.decoded([end.result.parts[-1] for end in ends if end.result.parts])
    if len(made) < len(ends):
        raise ConfigError("max_tokens: the image did not fit the model's longest sequence, give a shorter prompt")
    files = await service.with_codecs(lambda: [image_bytes(image, fields.output_format) for _, image in made])
    data = [{"b64_json": base64_of(file)} for file in files]
    return JSONResponse({"created": int(time.time()), "data": data, "output_format": fields.output_format,
                         "seed": answers.seed})  # fmt: skip


async def edit_form(request: HttpRequest) -> tuple[EditFields, list[Any]]:
    """Read the form of POST /v1/images/edits: `image`, or `image[]` several times, and fields."""
    fields, files = await _form(request, EditFields, files=("image", "image[]"))
    return fields, [{"image": file_of(data, name)} for data, name in files]


async def start_edit(service: Service, fields: EditFields, given: list[Any]) -> Answers:
    """Begin to make an image from images and a text."""
    service.modality("image", "model")
    if not service.pipeline.makes_edits:
        raise ConfigError("image: this model was not trained to make images from images, use /v1/images/generations")
    for item in given:
        service.check_file("image", item["image"]["bytes"])
    return await start_images(service, fields, given)


async def start_speech(service: Service, fields: SpeechRequest) -> Answers:
    """Begin to speak a text."""
    output = service.modality("audio", "model")
    return service.start(await service.read([fields.input]), output, fields)


async def speech(service: Service, fields: SpeechRequest, answers: Answers) -> Response:
    """Return the recording."""
    (end,) = await answers.all()
    if not end.result.parts:
        raise ConfigError("input: nothing was said before the model's longest sequence ended, give a shorter text")
    ((name, samples),) = await service.decoded(end.result.parts[-1:])
    rate = service.pipeline.codecs[name].sample_rate
    data = await service.with_codecs(sound_bytes, samples, rate, fields.response_format)
    headers = {"X-Sample-Rate": str(rate), "X-Seed": str(answers.seed)}
    return Response(data, media_type=SOUND_FORMATS[fields.response_format][2], headers=headers)


async def transcription_form(request: HttpRequest) -> tuple[TranscriptionFields, list[Any]]:
    """Read the form of POST /v1/audio/transcriptions: `file`, and fields."""
    fields, files = await _form(request, TranscriptionFields, files=("file",))
    if len(files) != 1:
        raise DataError(f"file: {len(files)} files are not allowed, there must be one")
    return fields, [{"audio": file_of(*files[0])}]


async def start_transcription(service: Service, fields: TranscriptionFields, given: list[Any]) -> Answers:
    """Begin to write down a recording."""
    codecs = service.pipeline.codecs
    require(any(c.kind == "audio" for c in codecs.values()), "model", service.name, "one that hears")
    service.check_file("audio", given[0]["audio"]["bytes"])
    return service.start(await service.read(given), service.host, fields)


async def transcription(service: Service, fields: TranscriptionFields, answers: Answers) -> Response:
    """Return the text."""
    (end,) = await answers.all()
    text = "".join(media for _, media in await service.decoded(end.result.parts))
    if fields.response_format == "text":
        return Response(text, media_type="text/plain; charset=utf-8")
    return JSONResponse({"text": text, "seed": answers.seed})


async def _form(
    request: HttpRequest, record: type[F], *, files: tuple[str, ...]
) -> tuple[F, list[tuple[bytes, str]]]:  # fmt: skip
    """Read a form (multipart/form-data): its files by these names, and its other fields as a record has them."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise DataError(f"body: {kind or 'no type'!r} is not allowed, it must be multipart/form-data")
    values: dict[str, str] = {}
    found: list[tuple[bytes, str]] = []
    async with request.form(max_files=16, max_fields=64, max_part_size=1 << 20) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile) != (name in files):
                known = [*files, *record.model_fields]
                if name not in known:
                    raise ConfigError(unknown("body", name, known))
                raise DataError(f"{name}: it must be a {'file' if name in files else 'text'}")
            if isinstance(value, UploadFile):
                found.append((await value.read(), value.filename or ""))
            elif name in values:
                raise DataError(f"{name}: it is given twice, leave one out")
            else:
                values[name] = value
    if not found:
        raise DataError(f"{files[0]}: it is missing, it must be a file")
    return record.model_validate(values), found
