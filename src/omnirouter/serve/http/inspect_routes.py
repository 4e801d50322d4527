"""POST /v1/inspect: what a model makes of a stretch of audio, for the web page and for programs.

Not in OpenAI's API. Rows of numbers come as base64 of bytes, one byte a value: a page draws
thousands of them. Letters: K mel frames, M mel bins, T frames, L layers.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from concurrent.futures import CancelledError
from functools import partial
from typing import Annotated, Any, BinaryIO

import numpy as np
from fastapi import APIRouter, Form, Request, UploadFile
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from omnirouter.audio.reader import AudioReader, NamedFile, Samples
from omnirouter.config import BadInput
from omnirouter.serve.http.app_state import AppState, ServedModel
from omnirouter.serve.http.jobs import (
    NAME,
    Abandoned,
    Stopped,
    as_problem,
    cancel_on_disconnect,
    detach_upload,
    out_of_time,
    too_long,
)
from omnirouter.serve.http.schemas import ApiError, errors
from omnirouter.serve.recognizer import Recognizer

router = APIRouter(tags=["routing"])

LONGEST_S = 60.0  # of one stretch
PEAK_S = 0.01
WHITE = 255
DARKEST, BRIGHTEST = 2.0, 99.5  # percentiles of a spectrogram's values


class InspectRequest(BaseModel):
    """The form of a request."""

    model_config = ConfigDict(protected_namespaces=())

    file: UploadFile = Field(description="Audio, any format that this server reads.")
    model: str = Field(
        default="", description="Name of a model; GET /v1/models lists them. The first if missing."
    )
    start: float = Field(default=0.0, ge=0.0, le=1e6, description="In seconds.")
    seconds: float = Field(default=30.0, ge=0.1, le=LONGEST_S, description="Length.")


class Row(BaseModel):
    """Values over time.

    `data` is base64 of one byte a value, `seconds` the time from one value to the next.
    """

    data: str
    seconds: float


class Spectrogram(Row):
    """Log-mel, frame after frame, each from the lowest bin to the highest; 255 is loud."""

    bins: int


class Layer(BaseModel):
    """Routing of one layer; base64 of one byte a frame.

    `experts` counts from 0. `colours` are the same experts under other numbers, matched between
    layers as well as can be, so that one color stands for one kind of sound. `gates` is the
    probability of the expert, 255 for 1.
    """

    experts: str
    colours: str
    gates: str


class RoutingInspection(BaseModel):
    """Spectrogram and routing of a stretch of audio."""

    model: str
    routing: str | None = Field(description="dense, switch, omni, ...; null of an exported model.")
    num_experts: int
    start: float = Field(description="Of the stretch, in seconds.")
    seconds: float = Field(description="Length of the stretch; shorter than asked for at the end.")
    peaks: Row = Field(description="Largest absolute sample of each 10 ms; 255 is full scale.")
    mel: Spectrogram | None = Field(description="What the model reads; null of an exported model.")
    frame_seconds: float = Field(description="From one frame of the layers to the next.")
    layers: list[Layer] = Field(description="From the first; empty of dense and exported models.")


@router.post("/v1/inspect", responses=errors(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504))
async def inspect(
    request: Request, stretch: Annotated[InspectRequest, Form(media_type="multipart/form-data")]
) -> RoutingInspection:
    """Show the spectrogram of a stretch of audio and which expert takes each of its frames.

    The stretch goes through the model by itself, while a transcription goes by pauses: at its edges
    the routing may differ a little from the one behind the transcript.
    """
    service: AppState = request.app.state.service
    served = service.find(stretch.model)
    file = detach_upload(stretch.file, service.limits)
    return await cancel_on_disconnect(request, _inspect(service, served, file, stretch))


async def _inspect(
    service: AppState, served: ServedModel, file: BinaryIO, stretch: InspectRequest
) -> RoutingInspection:
    limits, abandoned = service.limits, threading.Event()
    rate = served.recognizer.features.sample_rate

    def work() -> RoutingInspection:
        with file:
            samples = _read(file, rate, stretch, 60 * limits.max_minutes, abandoned)
        mel, layers = None, list[Layer]()
        if served.config is not None:
            look = partial(_look, served.recognizer, samples)
            mel, layers = service.engine.batcher.call(look).result()
        return _inspection(served, stretch.start, samples, mel, layers)

    try:
        return await asyncio.wait_for(service.engine.in_reader(work), limits.timeout)
    except TimeoutError as error:
        raise out_of_time(limits.timeout) from error
    except (BadInput, Stopped, CancelledError, Abandoned) as error:
        raise as_problem(error) from error
    finally:
        abandoned.set()


def _read(
    file: BinaryIO, rate: int, stretch: InspectRequest, longest_s: float, abandoned: threading.Event
) -> Samples:
    """The samples of the stretch; reads no further than its end."""
    first, behind = round(stretch.start * rate), round((stretch.start + stretch.seconds) * rate)
    parts, read = [], 0
    with AudioReader(NamedFile(file, NAME), rate) as stream:
        stream.decide(longest_s)
        for block in stream.blocks():
            if abandoned.is_set():
                raise Abandoned
            parts.append(block[max(0, first - read) : max(0, behind - read)])
            read += len(block)
            if read >= behind:
                break
            if read > longest_s * rate:
                raise too_long(longest_s)
    if read <= first:
        message = f"start: the audio ends after {read / rate:.2f} seconds"
        raise ApiError(422, message, code="invalid_value", param="start")
    return np.concatenate(parts)


def _look(recognizer: Recognizer, samples: Samples) -> tuple[Spectrogram, list[Layer]]:
    """Spectrogram and routing of samples [samples] at the model's rate; for checkpoints."""
    import torch  # which a server of exported models may lack

    from omnirouter.audio.features import log_mel_spectrogram, num_frames
    from omnirouter.evaluate.score_utterances import forward
    from omnirouter.metrics.expert_load import align_layers, top_expert
    from omnirouter.serve.transcriber import Transcriber

    assert isinstance(recognizer, Transcriber)
    config, features = recognizer.config, recognizer.features
    mel_KM = log_mel_spectrogram([samples], features)[0].numpy()
    mel = Spectrogram(
        data=_bytes(_shades(mel_KM)), seconds=features.shift_s, bins=features.num_mels
    )
    if config.routing == "dense":
        return mel, []
    if not num_frames(len(samples), features):
        return mel, [Layer(experts="", colours="", gates="")] * len(config.expert_layers)
    routings = forward(recognizer.checkpoint, [samples], recognizer.precision).routings
    experts_LT = torch.stack([top_expert(routing) for routing in routings])
    probs_LTN = torch.stack([routing.probs_TN for routing in routings])
    gates_LT = probs_LTN.gather(2, experts_LT[:, :, None])[:, :, 0].float().cpu().numpy()
    experts = experts_LT.cpu().numpy()
    colors_LT = align_layers(experts, config.num_experts)
    return mel, [
        Layer(experts=_bytes(e), colours=_bytes(c), gates=_bytes(np.rint(WHITE * g.clip(0, 1))))
        for e, c, g in zip(experts, colors_LT, gates_LT, strict=True)
    ]


def _inspection(
    served: ServedModel,
    start: float,
    samples: Samples,
    mel: Spectrogram | None,
    layers: list[Layer],
) -> RoutingInspection:
    features, config = served.recognizer.features, served.config
    return RoutingInspection(
        model=served.name,
        routing=config.routing if config else None,
        num_experts=config.num_experts if config else 1,
        start=start,
        seconds=round(len(samples) / features.sample_rate, 3),
        peaks=Row(data=_bytes(_peaks(samples, features.sample_rate)), seconds=PEAK_S),
        mel=mel,
        frame_seconds=features.frame_s,
        layers=layers,
    )


def _peaks(samples: Samples, rate: int) -> NDArray[np.float32]:
    size = round(PEAK_S * rate)
    padded = np.pad(np.abs(samples), (0, -len(samples) % size))
    peaks: NDArray[np.float32] = padded.reshape(-1, size).max(axis=1)
    peaks = np.rint(WHITE * np.minimum(peaks, 1.0))
    return peaks


def _shades(mel_KM: NDArray[np.float32]) -> NDArray[np.float32]:
    if not mel_KM.size:
        return mel_KM
    low, high = np.percentile(mel_KM, [DARKEST, BRIGHTEST])
    shares: NDArray[np.float32] = np.clip((mel_KM - low) / max(high - low, 1e-6), 0.0, 1.0)
    shades: NDArray[np.float32] = np.rint(WHITE * shares)
    return shades


def _bytes(values: NDArray[Any]) -> str:
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()
