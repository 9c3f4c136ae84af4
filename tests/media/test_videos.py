"""Videos: which frames are looked at, and split == unsplit for them after a store and a read."""

from __future__ import annotations

import importlib
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import clips
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from models import FAMILIES, make_checkpoint, unsplit
from PIL import Image
from qwen_vl_utils import fetch_video, vision_process
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

import qsplit
from qsplit.cli.main import cli
from qsplit.config import Settings
from qsplit.errors import ImageTooLarge, InvalidFeatures, UnreadableImage, UnsupportedImage, UsageError
from qsplit.features.features import Features
from qsplit.features.sizing import Resize
from qsplit.media.images import SUFFIXES, Limits, decode
from qsplit.media.videos import CLIP_SUFFIXES, is_clip, read_clip
from qsplit.models.language.model import LanguageModel, Sampling
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FeatureRow

QUESTION = "What moves?"
KINDS = {
    "mp4": "libx264",
    "matroska": "libx264",
    "webm": "libvpx",
    "avi": "mpeg4",
    "mov": "mpeg4",
    "mpeg": "mpeg2video",
}


def read(data: bytes, max_frames: int = 64) -> Any:
    return read_clip(data, name="clip.mp4", max_frames=max_frames, max_pixels=10**6)


def fit(data: bytes) -> Any:
    return decode(data, name="clip.mp4", limits=Limits())


@pytest.fixture(scope="module")
def data() -> bytes:
    return clips.video(25)


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("clips") / request.param, request.param)


# Which frames


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_is_known_by_its_content_and_read(kind: str) -> None:
    rate = Fraction(25) if kind == "mpeg" else Fraction(10)
    data = clips.video(25, kind=kind, codec=KINDS[kind], fps=rate)
    assert is_clip(data)
    clip = read(data)
    frames = list(clip.frames())
    assert len(frames) == len(clip.numbers) == len(clip.timestamps) >= 2
    for number, seen in zip(clip.numbers, frames, strict=True):
        difference = np.abs(np.asarray(seen, int) - np.asarray(clips.frame(number), int)).mean()
        assert difference < min(
            np.abs(np.asarray(seen, int) - np.asarray(clips.frame(other), int)).mean()
            for other in range(25)
            if other != number
        )


def test_frames_are_those_that_the_reference_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = clips.video(47, fps=Fraction(30000, 1001))
    path = clips.write(tmp_path / "clip.mp4", data)
    clip = read(data)
    taken: dict[str, Any] = {}

    def reader(asked: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
        video, metadata, fps = from_frames(asked, data)
        taken.update(metadata, sample_fps=fps)
        return video, metadata, fps

    monkeypatch.setitem(vision_process.VIDEO_READER_BACKENDS, "torchvision", reader)
    monkeypatch.setattr(vision_process, "get_video_reader_backend", lambda: "torchvision")
    fetch_video({"video": str(path), "max_frames": 64})
    assert list(clip.numbers) == taken["frames_indices"]
    assert clip.sample_fps == taken["sample_fps"]
    assert clip.timestamps == tuple(i / taken["fps"] for i in taken["frames_indices"])


def from_frames(asked: dict[str, Any], data: bytes) -> tuple[torch.Tensor, dict[str, Any], float]:
    """What the readers of qwen-vl-utils do with a file, over PyAV."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 0)
        frames = [np.asarray(one.to_image()) for one in container.decode(stream)]
    n = vision_process.smart_nframes(asked, total_frames=len(frames), video_fps=fps)
    numbers = torch.linspace(0, len(frames) - 1, n).round().long().tolist()
    video = torch.from_numpy(np.stack([frames[i] for i in numbers])).permute(0, 3, 1, 2)
    metadata = {"fps": fps, "frames_indices": numbers, "total_num_frames": len(frames)}
    return video, metadata, n / max(len(frames), 1e-6) * fps


def test_no_more_frames_are_taken_than_allowed(data: bytes) -> None:
    assert len(read(data, 2).numbers) == 2
    assert read(data, 2).numbers == (0, 24)
    assert decode(data, name="x", limits=Limits(max_frames=2)).clip.numbers == (0, 24)  # type: ignore[union-attr]
    assert Limits.from_settings(Settings.from_env({"QSPLIT_MAX_VIDEO_FRAMES": "8"})).max_frames == 8


def test_a_lying_video_is_set_upright(data: bytes) -> None:
    upright = fit(clips.turned(data))
    assert (upright.width, upright.height) == (64, 96)
    assert min(upright.rgb.getpixel((60, 3))) > 200  # the white corner
    assert max(upright.rgb.getpixel((3, 3))) < 200


def test_a_video_is_a_picture_of_its_middle_frame() -> None:
    data = clips.video(25, made="2024-05-06T07:08:09Z")
    picture = fit(data)
    assert (picture.width, picture.height, picture.format) == (96, 64, "MOV")
    assert picture.taken_at == datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert picture.detail == 0
    assert picture.thumbnail
    assert picture.pixels_digest == fit(data).pixels_digest
    others = {fit(clips.video(26)).pixels_digest, fit(clips.video(25, fps=5)).pixels_digest}
    assert picture.pixels_digest not in others
    assert len(others) == 2


@pytest.mark.parametrize("cut", [40, 300, 1500])
def test_a_video_cut_off_is_refused(data: bytes, cut: int) -> None:
    with pytest.raises(UnreadableImage, match=r"cannot be decoded|holds no video|ends before"):
        fit(data[:cut])


def test_a_video_of_one_frame_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="1 frames"):
        read(clips.video(1))


def test_frames_that_are_too_large_are_refused(data: bytes) -> None:
    with pytest.raises(ImageTooLarge, match="96x64; the bound is 6,000"):
        read_clip(data, name="x", max_frames=4, max_pixels=6000)


def test_sound_alone_is_no_video() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(UnreadableImage, match="no video stream"):
        read(file.getvalue())


def test_without_pyav_the_message_tells_what_to_install(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(UnreadableImage, match=r"qsplit\[video\]"):
        read(data)


def test_no_suffix_is_of_both_kinds() -> None:
    assert not CLIP_SUFFIXES & SUFFIXES


# Split and unsplit


@pytest.mark.parametrize(
    "size", [{}, {"min_pixels": 56 * 56, "max_pixels": 80 * 80}, {"resized_height": 64, "resized_width": 96}], ids=str
)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a picture"])
def test_an_answer_about_a_stored_video_is_that_of_the_whole_model(
    checkpoint: Path, data: bytes, tmp_path: Path, size: dict[str, int], beside: bool
) -> None:
    processor: Any = AutoProcessor.from_pretrained(checkpoint)
    raw, metadata, _ = from_frames({}, data)
    images = [Image.fromarray(np.asarray(clips.frame(3)))] if beside else []
    content = [{"type": "image"}] * len(images) + [{"type": "video"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    if size:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(vision_process.VIDEO_READER_BACKENDS, "torchvision", lambda asked: from_frames(asked, data))
            patch.setattr(vision_process, "get_video_reader_backend", lambda: "torchvision")
            patch_size = processor.video_processor.patch_size
            raw = fetch_video({"video": "clip.mp4", **size}, image_patch_size=patch_size)
    given: Any = {"videos": [raw], "video_metadata": [VideoMetadata(**metadata)], "do_sample_frames": False}
    if size:
        given["do_resize"] = False
        images = [
            vision_process.fetch_image({"image": one, **size}, processor.image_processor.patch_size) for one in images
        ]
    inputs = processor(text=[text], images=images or None, **given, return_tensors="pt")
    inputs.pop("video_metadata", None)
    model = unsplit(checkpoint, "bfloat16")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)

    vision = VisionEncoder.from_pretrained(str(checkpoint), device="cpu", resize=Resize(**size))
    rows = [
        FeatureRow(f"{i:064x}", one, vision.provenance)
        for i, one in enumerate(vision.encode([*[clips.frame(3)] * len(images), fit(data)]))
    ]
    FeatureStore(tmp_path / "album.qsplit", create=True).put_features(rows)
    found = FeatureStore(tmp_path / "album.qsplit").get_features([row.key for row in rows])
    features = [found[row.key] for row in rows]
    assert [one.digest() for one in features] == [row.features.digest() for row in rows]
    assert features[-1].is_clip
    language = LanguageModel.from_pretrained(str(checkpoint), device="cpu", resize=Resize(**size))
    prompt = language.prompt(features, QUESTION)
    assert torch.equal(prompt.input_ids, inputs["input_ids"])
    assert torch.equal(prompt.mm_token_type_ids, inputs["mm_token_type_ids"].long())
    assert torch.equal(language.logits(prompt), logits)
    answer = language.answer(features, QUESTION, sampling=Sampling(max_new_tokens=8))
    assert answer.exact
    assert list(answer.tokens) == out[0, inputs["input_ids"].shape[1] :].tolist()


def test_a_bound_below_the_references_least_is_kept_to(checkpoint: Path, data: bytes) -> None:
    vision = VisionEncoder.from_pretrained(str(checkpoint), resize=Resize(max_pixels=80 * 80))
    (features,) = vision.encode([fit(data)])
    _, h, w = features.grid_thw
    patch = vision.checkpoint.image_processor().patch_size
    assert h * w * patch**2 <= 80 * 80


def test_times_count_where_the_family_counts_them(checkpoint: Path, data: bytes) -> None:
    """Else the comparison above could pass with times that say nothing."""
    vision, language = VisionEncoder.from_pretrained(str(checkpoint)), LanguageModel.from_pretrained(str(checkpoint))
    (fast,) = vision.encode([fit(data)])
    slow = replace(fast, timestamps=tuple(10 * t for t in fast.timestamps), sample_fps=fast.sample_fps / 10)
    one, other = (language.logits(language.prompt([features], QUESTION))[-1] for features in (fast, slow))
    counts = language.checkpoint.family.clips != "steps"
    assert torch.equal(one, other) != counts
    assert fast.digest() != slow.digest()


def test_questions_that_share_a_video_are_answered_as_alone(
    mini_language: LanguageModel, mini_vision: VisionEncoder, data: bytes
) -> None:
    features = mini_vision.encode([fit(data)])
    asked = ["What colour is the background?", "Is there a red square?"]
    together = mini_language.answers(features, asked, sampling=Sampling(max_new_tokens=4))
    alone = [mini_language.answer(features, one, sampling=Sampling(max_new_tokens=4)) for one in asked]
    assert [one.text for one in together] == [one.text for one in alone]


def test_a_question_must_not_hold_a_placeholder(
    mini_language: LanguageModel, mini_vision: VisionEncoder, data: bytes
) -> None:
    with pytest.raises(UsageError, match="video_pad"):
        mini_language.prompt(mini_vision.encode([fit(data)]), "What is <|video_pad|>?")


@pytest.mark.parametrize(("times", "fps"), [((0.0,), 1.0), ((0.0, 1.0), 0.0), ((), 1.0), ((0.0, float("nan")), 1.0)])
def test_times_that_make_no_sense_are_refused(mini_vision: VisionEncoder, data: bytes, times: Any, fps: float) -> None:
    (made,) = mini_vision.encode([fit(data)])
    assert made.grid_thw[0] == 2
    with pytest.raises(InvalidFeatures, match="timestamps"):
        Features(made.tokens, made.grid_thw, made.encoder, timestamps=times, sample_fps=fps)


def test_a_family_that_takes_no_videos_says_so(tmp_path: Path, data: bytes) -> None:
    vision = VisionEncoder.from_pretrained(str(make_checkpoint(tmp_path / "glm", "glm4v")))
    with pytest.raises(UnsupportedImage, match="no videos"):
        vision.encode([fit(data)])


# In an album


def test_videos_are_indexed_asked_and_kept_apart_from_stills(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    clips.write(folder / "a.mp4", data)
    clips.write(folder / "b.mp4", clips.video(26))
    fit(data).rgb.save(folder / "middle.png")
    album = qsplit.open(tmp_path / "album.qsplit")
    assert album.index(folder).found == 1
    report = album.index(folder, videos=True)
    assert (report.found, report.encoded, report.unreadable) == (3, 2, [])
    assert album.index(folder, videos=True).unchanged == 3
    assert album.index(folder / "a.mp4").found == 1
    (reply,) = album.ask(folder / "a.mp4", "Is it a drawing or a photograph?")
    assert reply.exact
    assert album.duplicates() == []
    again = clips.write(tmp_path / "again.mp4", data + b"\0\0\0\x08free")  # other bytes
    best, *_ = album.search(like=again)
    assert best.path == str(folder / "a.mp4")
    assert best.score == pytest.approx(1)
    assert album.verify(drift=3).sound
    found = CliRunner().invoke(
        cli, ["index", str(folder), "--videos", "--store", str(tmp_path / "other.qsplit"), "--json"]
    )
    assert json.loads(found.stdout)["encoded"] == 3
