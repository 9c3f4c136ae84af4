"""The façade: one object that a Python user, the command line and the server hold."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from PIL import Image

from qsplit.config import Settings, folder_or_id
from qsplit.duplicates import detector
from qsplit.duplicates.cleanup import Trash
from qsplit.duplicates.decisions import Decisions
from qsplit.duplicates.html_report import write_page
from qsplit.duplicates.keep_rules import KeepOrder
from qsplit.duplicates.move_rules import MOVED_KINDS
from qsplit.errors import NotFound, UsageError
from qsplit.features.codecs import CODECS
from qsplit.features.features import PLAIN, Encoder
from qsplit.features.sizing import Resize
from qsplit.integrations.export import Format, Written
from qsplit.integrations.export import export as export_features
from qsplit.maintenance import garbage
from qsplit.maintenance.snapshots import Snapshots
from qsplit.maintenance.status import Status, read_status
from qsplit.media.images import NULL_PIXELS, Limits, Picture, null_picture
from qsplit.progress import Progress, counting
from qsplit.qa.policy import Policy, read_policy
from qsplit.search.filters import Filters
from qsplit.search.query_parser import parse
from qsplit.store import lookup
from qsplit.store.feature_store import FeatureStore
from qsplit.store.pictures import Pictures
from qsplit.store.records import FeatureRow, Skipped, StoreSettings

if TYPE_CHECKING:
    from qsplit.cluster.context import EncodeContext
    from qsplit.indexing import pipeline
    from qsplit.integrations.vllm.remote_language import RemoteLanguage
    from qsplit.maintenance import verify as verifying
    from qsplit.models.checkpoint import Checkpoint
    from qsplit.models.families import Half
    from qsplit.models.language.model import LanguageModel, Sampling
    from qsplit.models.vision.encoder import VisionEncoder
    from qsplit.qa import ask as asking
    from qsplit.qa import checks
    from qsplit.search.engine import By, Found, Sort
    from qsplit.search.query_vector import Halves, Like

__all__ = ["Album", "open"]

T = TypeVar("T")
PathLike = str | os.PathLike[str]


class Album:
    """A store, and the two halves of a checkpoint, each loaded when it is first needed.

    Made by `qsplit.open`. ``index`` needs the vision half, ``ask`` and ``search`` for a text the language half,
    ``search`` for a picture of the album and ``duplicates`` neither.
    """

    def __init__(
        self,
        store: str | Path = "",
        *,
        model: str = "",
        revision: str = "",
        dtype: str = "",
        device: str = "",
        resize: Resize | None = None,
        codec: str = "",
        compute: str = "",
        trust_encoder: str = "",
        snapshot: str = "",
        language: str = "",
        settings: Settings | None = None,
    ) -> None:
        settings = settings or Settings.from_env()
        self.uri = str(store or settings.store)
        model = model or settings.model
        self._asked = StoreSettings(
            folder_or_id(model) if model else "",
            revision,
            dtype or settings.dtype,
            **asdict(resize or Resize()),
            codec=codec,
            compute=compute,
        )
        self._device = device or settings.device
        self._cache = settings.cache
        self._trust_encoder = trust_encoder
        self._snapshot = snapshot
        self.language_server, self._server_key = language or settings.language, settings.language_key
        self._left_out: Half | None = None
        self._loading_turn = RLock()
        self.limits = Limits.from_settings(settings)

    @cached_property
    def device(self) -> str:
        """Where the halves are loaded: as asked for, else the best device that is present."""
        from qsplit.models.checkpoint import default_device

        return self._device or default_device()

    @cached_property
    def store(self) -> FeatureStore:
        """The store; raises `NotFound` if nothing was ever indexed into it."""
        return FeatureStore(self.uri, snapshot=self._snapshot)

    @property
    def exists(self) -> bool:
        """Whether there is a store."""
        try:
            return bool(self.store)
        except NotFound:
            return False

    @property
    def pictures(self) -> Pictures:
        """What the store knows of its pictures."""
        return Pictures(self.store, self.limits)

    @property
    def snapshots(self) -> Snapshots:
        """The states of the store that are kept under names."""
        return Snapshots(self.store)

    @property
    def decisions(self) -> Decisions:
        """What was said of two pictures."""
        return Decisions(self.store, self.limits)

    @property
    def trash(self) -> Trash:
        """Where duplicates are moved, and brought back from."""
        return Trash(self.store)

    def begin(self) -> Encoder:
        """Make the store, with what is asked of the model, before anything is put into it; who will encode."""
        return self._record(create=True)

    @cached_property
    def vision(self) -> VisionEncoder:
        from qsplit.models.vision.encoder import VisionEncoder

        self._check_half("vision")

        def load() -> VisionEncoder:
            return VisionEncoder.from_pretrained(self._chosen.model, compute=self._compute, **self._loading())

        return self._once("vision", load)

    @cached_property
    def language(self) -> LanguageModel:
        from qsplit.models.language.model import LanguageModel

        self._check_half("language")

        def load() -> LanguageModel:
            options = self._loading()
            return LanguageModel.from_pretrained(self._chosen.model, trust_encoder=self._trust_encoder, **options)

        return self._once("language", load)

    @cached_property
    def answerer(self) -> LanguageModel | RemoteLanguage:
        """Who answers questions: the server that ``language`` is the address of, else the language half."""
        if not self.language_server:
            return self.language
        from qsplit.integrations.vllm.remote_language import RemoteLanguage

        chosen, options = self._chosen, self._loading()
        del options["device"]
        return RemoteLanguage.connect(
            self.language_server, chosen.model, key=self._server_key, trust_encoder=self._trust_encoder, **options
        )

    def leave_out(self, half: Half) -> None:
        """Never load one half: what needs it raises `UsageError` from now on."""
        self._left_out = half

    def _check_half(self, half: Half) -> None:
        if half == self._left_out:
            raise UsageError(
                f"The {half} half of the model is left out here.", fix="Ask the process that has it, or serve both."
            )
        if half == "language" and self.language_server and not self.checkpoint(half).has(half):
            raise UsageError(
                "The weights of the language half are not here, and a server makes no vectors of text.",
                fix="Give --model a folder that has them.",
            )

    def _once(self, half: Half, load: Callable[[], T]) -> T:
        """A half, loaded by one of the threads that ask for it first; from Python 3.12 on, all of them come here."""
        with self._loading_turn:
            if half not in self.__dict__:
                self.__dict__[half] = load()
            loaded: T = self.__dict__[half]
            return loaded

    def has_loaded(self, half: Half) -> bool:
        """Whether the weights of a half are in this process by now."""
        return half in self.__dict__

    def checkpoint(self, half: Half) -> Checkpoint:
        """The checkpoint that the album's model names, found but not loaded."""
        from qsplit.models.checkpoint import resolve

        return resolve(self._chosen.model, half, revision=self._chosen.revision, cache=self._cache)

    def index(
        self,
        *paths: PathLike,
        videos: bool = False,
        semantic: bool = False,
        captions: bool = False,
        caption_prompts: Sequence[str] = (),
        ray: str | None = None,
        workers: int = 0,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> pipeline.IndexReport:
        """Bring the store up to date with files, folders and globs; makes the store if there is none.

        ``videos`` also takes those that lie in folders; one that is named is always taken. ``semantic`` and
        ``captions`` are as for `Album.refresh`. ``ray`` is the address of a Ray cluster on which ``workers`` encode at
        once (0: one for each GPU, else each core): ``auto`` is this node's, ``local`` one of this machine for the run;
        paths may then be addresses on object storage and archives, too. Raises `NotFound` for a path that does not
        exist, and `UsageError` where there is no Ray, before anything is written.
        """
        if ray is not None:
            begin = partial(self._begin_encoding, caption_prompts)
            report = _index_on_ray(paths, begin, address=ray, workers=workers, videos=videos, on_progress=on_progress)
        else:
            from qsplit.indexing import discovery, pipeline

            discovery.check_paths(paths)  # a mistyped path leaves no store behind
            encoder = self._record(create=True, caption_prompts=caption_prompts)
            report = pipeline.index(
                self.store, paths, encoder, lambda: self.vision, videos=videos, **self._encoding(on_progress)
            )
        return self._enriched(report, on_progress, semantic=semantic, captions=captions)

    def add(self, picture: Picture, path: PathLike) -> bool:
        """Put one picture that was decoded already and whose file lies at a path; whether it had to be encoded.

        What ``index`` would do to the file, without reading it. Raises `UnsupportedImage`.
        """
        from qsplit.indexing import pipeline

        if not self.exists:
            self.begin()
        return pipeline.add(
            self.store,
            picture,
            os.fspath(path),
            self.wanted,
            lambda: self.vision,
            limits=self.limits,
            codec=self._codec,
        )

    def known(self, image_id: str = "", *, pixels_digest: str = "") -> str:
        """The id of an image that the current encoder has seen, by that id or by its pixels; empty if there is none."""
        if not self.exists:
            return ""
        store, encoder_id = self.store, self.wanted.id
        images = store.images_of_pixels(pixels_digest) if pixels_digest else store.images([image_id]).values()
        seen = store.encoded_pixels(encoder_id, (image.pixels_digest for image in images))
        ids = store.vector_ids(encoder_id, [image.image_id for image in images if image.pixels_digest in seen])
        return min(ids, default="")

    def refresh(
        self,
        *,
        semantic: bool = False,
        captions: bool = False,
        caption_prompts: Sequence[str] = (),
        drop_old: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> pipeline.IndexReport:
        """Encode the known pictures that the current encoder has not seen; resumable.

        ``semantic`` then has the language half make the vectors that texts are compared with, and ``captions`` what
        full-text search reads, of the pictures that lack them; both are resumable, and what another language half or
        other prompts made is replaced. ``caption_prompts`` ask for captions, each for one, from now on. ``drop_old``
        removes what other encoders made of pictures that this one has seen.
        """
        from qsplit.indexing import pipeline

        encoder = self._record(create=False, caption_prompts=caption_prompts)
        report = pipeline.refresh(self.store, encoder, lambda: self.vision, **self._encoding(on_progress))
        report = self._enriched(report, on_progress, semantic=semantic, captions=captions)
        if drop_old:
            garbage.drop_old(self.store, encoder.id)
        return report

    def ask(
        self,
        images: PathLike | Sequence[PathLike],
        questions: str | Sequence[str],
        *,
        system: str = "",
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        exact: bool = False,
    ) -> list[asking.Reply]:
        """One reply per question about a picture, or about several in the order given; see `Album.ask_each`."""
        return list(
            self.ask_each(
                images, questions, system=system, history=history, sampling=sampling, on_text=on_text, exact=exact
            )
        )

    def ask_each(
        self,
        images: PathLike | Sequence[PathLike],
        questions: str | Sequence[str],
        *,
        system: str = "",
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        exact: bool = False,
    ) -> Iterator[asking.Reply]:
        """Reply by reply. A picture is named by path, by the end of its path, or by an id prefix.

        Questions share what they begin with; ``exact`` answers each by itself, as the unsplit model would.
        Raises `NotIndexed`, `IncompatibleFeatures` and `UsageError`; the pictures are found before the model is loaded.
        """
        from qsplit.qa import ask as asking

        names = [images] if isinstance(images, str | os.PathLike) else images
        pictures = [self.locate(name) for name in names]
        yield from asking.ask(
            self.store,
            self.answerer,
            pictures,
            [questions] if isinstance(questions, str) else questions,
            system=system,
            history=history,
            sampling=sampling,
            on_text=on_text,
            exact=exact,
        )

    def locate(self, image: PathLike) -> lookup.StoredPicture:
        """The picture that the store knows by a path, by the end of a path, or by an id prefix."""
        return lookup.locate(self.store, image, self.limits)

    def check(
        self,
        policy: Policy | PathLike,
        images: Sequence[PathLike] = (),
        *,
        exact: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[checks.Verdict | Skipped]:
        """Every check of a policy on some pictures, or on all; what was computed before is read from the store.

        ``policy`` is a file, or the name of one that comes with qsplit. A picture that cannot be asked about is
        yielded as `Skipped`, with the reason. A policy that calibrates needs the vision half once, for the picture
        that shows nothing: raises `CheckpointError` where it is not at hand then.
        """
        from qsplit.qa import checks

        if not isinstance(policy, Policy):
            policy = read_policy(os.fspath(policy))
        if policy.calibrate:
            self._encode_null_picture()
        pictures = [self.locate(name) for name in images] or lookup.everything(self.store)
        yield from checks.check(self.store, self.answerer, policy, pictures, exact=exact, on_progress=on_progress)

    def search(
        self,
        text: str = "",
        *,
        like: Like | Sequence[Like] = (),
        limit: int = 20,
        after: str = "",
        where: Filters | None = None,
        sort: Sort = "relevance",
        by: By = "meaning",
        rerank: int = 0,
        everything: bool = False,
    ) -> Found:
        """A page of the pictures that are most like what a query says, best first; a list, with ``after`` for the next.

        ``text`` is a query of one or several terms, as `qsplit.search.query_parser.parse` reads it. ``like`` are
        pictures of the album, files outside it, or PIL images; those of the album are left out themselves. Pictures
        alone are compared by their pooled features, which takes no model; a text takes semantic vectors (`refresh` with
        ``semantic``), and words take captions: ``by`` is meaning, words, or hybrid, which fuses both rankings.
        ``rerank`` asks so many of the best whether they are what the text says, and scores them by that. Without
        either, all that fulfils ``where`` is found, newest first. ``sort`` by date takes the good matches (of pictures:
        the 1,000 nearest).

        Only good matches of a text are found, as `qsplit.search.relevance` tells them, or with ``everything`` the
        nearest anyway; ``is_cut`` says that an empty page is for want of a good match. ``after`` is the cursor that the
        page before ended with: nothing comes twice, whatever was added meanwhile. Raises `NotIndexed` and `UsageError`.
        """
        from qsplit.search.engine import Request, search

        several = (like,) if isinstance(like, str | os.PathLike | Image.Image) else tuple(like)
        request = Request(
            parse(text),
            several,
            limit,
            after,
            where or Filters(),
            sort=sort,
            by=by,
            rerank=rerank,
            everything=everything,
        )
        return search(self.store, self._encoder_id, request, self.halves)

    def duplicates(
        self,
        kinds: Collection[detector.Kind] = (),
        *,
        similar: bool = False,
        mirrored: bool = False,
        keep: Sequence[str] = (),
        protect: Sequence[PathLike] = (),
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[detector.Group]:
        """Groups of files that show the same picture, the one to keep first; no file is touched.

        ``kinds`` are exact, pixels and copy if none is named; ``similar`` adds shots of one burst or scene. Copies are
        movable only if ``copy`` is named. ``mirrored`` finds copies in a mirror too. ``keep`` are rules of
        `qsplit.duplicates.keep_rules`, ``protect`` folders whose files are kept.
        """
        order = KeepOrder(tuple(keep), tuple(os.fspath(path) for path in protect))
        return detector.find_duplicates(
            self.store,
            kinds=(*(kinds or detector.KINDS[:3]), *(("similar",) if similar else ())),
            moved=kinds or MOVED_KINDS,
            order=order,
            mirrored=mirrored,
            on_progress=on_progress,
        )

    def write_duplicates(self, groups: Sequence[detector.Group], out: PathLike) -> None:
        """Write a page that shows groups side by side; raises `UsageError` for a name that is no .html."""
        write_page(groups, Path(out), self.store, self.limits, title=f"Duplicates in {self.store.uri}")

    def status(self) -> Status:
        """What the store holds; needs no checkpoint."""
        return read_status(self.store)

    def export(
        self, out: PathLike, images: Sequence[PathLike] = (), *, form: Format = "safetensors"
    ) -> Iterator[Written | Skipped]:
        """Write the current encoder's features of some pictures, or of all, into a folder; see
        `qsplit.integrations.export`."""
        pictures = [self.locate(name) for name in images] or lookup.everything(self.store)
        yield from export_features(self.store, pictures, self._encoder_id, form, Path(out))

    def verify(self, *, drift: int = 0, on_progress: Callable[[int, int], None] | None = None) -> verifying.Verified:
        """Read everything that the store holds and compare it with what was put in; changes nothing.

        ``drift`` pictures are encoded again and compared, with the answers over both, which needs both halves; their
        weights are hashed again first. Raises `CheckpointError` if those are not what they were.
        """
        from qsplit.maintenance import verify as verifying

        verified = verifying.verify(self.store, on_progress=on_progress)
        if not drift:
            return verified
        from qsplit.maintenance.drift import measure_drift
        from qsplit.models.families import HALVES

        for half in HALVES:
            self.checkpoint(half).check_weights(half)
        measured = measure_drift(self.store, self.vision, self.language, drift, limits=self.limits)
        return replace(verified, drift=measured)

    def forget(self, images: PathLike | Sequence[PathLike], *, dry_run: bool = False) -> garbage.Forgotten:
        """Remove pictures from the store, with all that was made of them; the files themselves are not touched."""
        names = [images] if isinstance(images, str | os.PathLike) else images
        found = [self.locate(name).image.image_id for name in names]
        return garbage.forget(self.store, found, dry_run=dry_run)

    def compact(
        self, *, dry_run: bool = False, alone: bool = False, served_for: timedelta | None = None
    ) -> garbage.Compacted:
        """Remove what interrupted runs and forgotten pictures left behind; see `qsplit.maintenance.garbage.compact`.

        What workers of a run left that nobody joined is joined first.
        """
        if not dry_run:
            from qsplit.indexing.shards import Joiner

            Joiner(self.store, uuid4().hex).join_all_known()
        return garbage.compact(self.store, dry_run=dry_run, alone=alone, served_for=served_for)

    def _enriched(
        self,
        report: pipeline.IndexReport,
        on_progress: Callable[[Progress], None] | None,
        *,
        semantic: bool,
        captions: bool,
    ) -> pipeline.IndexReport:
        """The report, with what the language half then made of the pictures; indexes are brought up to date."""
        from qsplit.search.backfill import Filled
        from qsplit.search.captions import fill as fill_captions
        from qsplit.search.semantic_vectors import fill as fill_semantics

        began, recorded = time.monotonic(), self.store.settings()
        vectors, texts = Filled(0, []), Filled(0, [])
        if semantic:
            told = counting("semantic vectors", on_progress)
            vectors = fill_semantics(self.store, self.language, recorded.encoder, on_progress=told)
        if captions:
            told, prompts = counting("captions", on_progress), recorded.caption_prompts.splitlines()
            texts = fill_captions(self.store, self.answerer, recorded.encoder, prompts=prompts, on_progress=told)
        self.store.vectors(recorded.encoder).tend()
        return replace(
            report,
            semantic=vectors.images,
            captions=texts.images,
            unsearchable=[*vectors.skipped, *texts.skipped],
            seconds=report.seconds + time.monotonic() - began,
        )

    def _record(self, *, create: bool, caption_prompts: Sequence[str] = ()) -> Encoder:
        """The encoder of what is encoded from now on, recorded in the store."""
        chosen, codec = self._chosen, self._codec
        checkpoint = self.checkpoint("vision")  # a model that cannot be used leaves no store behind
        encoder = checkpoint.encoder(chosen.dtype, _resize(chosen), self._compute)
        if create:
            self.__dict__["store"] = FeatureStore(self.uri, create=True, snapshot=self._snapshot)
        # Recorded before the first row: an index that is interrupted can be asked about, and resumed without options.
        self.store.record(
            replace(
                chosen,
                model=checkpoint.name,
                revision=checkpoint.revision,
                dtype=encoder.dtype,
                codec=codec,
                compute=encoder.compute,
                encoder=encoder.id,
                caption_prompts="\n".join(caption_prompts) or self.store.settings().caption_prompts,
            )
        )
        return encoder

    def _begin_encoding(self, caption_prompts: Sequence[str]) -> EncodeContext:
        """How other processes encode into the store, which is made: what it recorded, on a device of their own."""
        from qsplit.cluster.context import EncodeContext
        from qsplit.models.vision.encoder import VisionEncoder

        encoder = self._record(create=True, caption_prompts=caption_prompts)
        recorded = self.store.settings()
        vision = partial(
            VisionEncoder.from_pretrained,
            recorded.model,
            revision=recorded.revision,
            device=self._device,
            dtype=recorded.dtype,
            resize=_resize(recorded),
            compute=recorded.compute,
            cache=self._cache,
        )
        uri = self.uri if "://" in self.uri else lookup.absolute(self.uri)
        return EncodeContext(uri, encoder, vision, self.limits, recorded.codec)

    def _encode_null_picture(self) -> None:
        """Have the store hold the features of the picture that shows nothing, by the current encoder."""
        if not self.store.encoded_pixels(self.answerer.wanted.id, [NULL_PIXELS]):
            (features,) = self.vision.encode([null_picture()])
            self.store.put_features([FeatureRow(NULL_PIXELS, features, self.vision.provenance)])

    def _encoding(self, on_progress: Callable[[Progress], None] | None) -> dict[str, Any]:
        """What both ways of encoding are told."""
        return {"limits": self.limits, "codec": self._codec, "on_progress": on_progress}

    def _loading(self) -> dict[str, Any]:
        """What both halves are loaded with."""
        chosen = self._chosen
        return {
            "revision": chosen.revision,
            "device": self.device,
            "dtype": chosen.dtype,
            "resize": _resize(chosen),
            "cache": self._cache,
        }

    @cached_property
    def _chosen(self) -> StoreSettings:
        """What was asked for, then what the store recorded."""
        try:
            recorded = self.store.settings()
        except NotFound:
            recorded = StoreSettings()
        if self._asked.model and self._asked.model != recorded.model:
            return self._asked  # another model: nothing of the old one's settings carries over
        asked = {name: value for name, value in asdict(self._asked).items() if value not in ("", None)}
        return replace(recorded, **asked)

    @property
    def _codec(self) -> str:
        codec = self._chosen.codec or "raw"
        if codec not in CODECS:
            raise UsageError(f"There is no codec {codec!r}.", fix=f"Choose {', '.join(CODECS)}.")
        return codec

    @property
    def _compute(self) -> str:
        return self._chosen.compute or PLAIN

    @property
    def _encoder_id(self) -> str:
        """The encoder whose vectors are searched: that of the model asked for, else of the last index."""
        recorded = self.store.settings()
        if self._chosen == recorded:
            return recorded.encoder
        return self.wanted.id

    @cached_property
    def wanted(self) -> Encoder:
        """Who would encode what is put now."""
        return self.checkpoint("vision").encoder(self._chosen.dtype, _resize(self._chosen), self._compute)

    @property
    def halves(self) -> Halves:
        """Who makes vectors and answers questions for a search, loaded when they are first called for."""
        from qsplit.search.query_vector import Halves

        return Halves(lambda: self.language, lambda: self.vision, self.limits)


def open(  # noqa: A001  # qsplit.open is the name users type
    store: str | Path = "",
    *,
    model: str = "",
    revision: str = "",
    dtype: str = "",
    device: str = "",
    resize: Resize | None = None,
    codec: str = "",
    compute: str = "",
    trust_encoder: str = "",
    snapshot: str = "",
    language: str = "",
) -> Album:
    """Open an album: a store, and the checkpoint whose halves look at it and talk about it.

    Empty arguments mean what ``QSPLIT_*`` says, then what the store recorded at its first index, then the bundled
    checkpoint, its own dtype and the best device present. ``codec`` is how features are kept from now on (raw,
    planes-zstd or int8: see `qsplit.features.codecs`), ``compute`` how they are made (plain or packed: see
    `qsplit.models.vision.packing`), and ``snapshot`` opens the store as it was then, to be read only. ``language`` is
    the address of a vLLM server that answers questions in place of the language half: see
    `qsplit.integrations.vllm.remote_language`. Nothing is read or loaded before it is needed.

    >>> import tempfile, qsplit
    >>> from qsplit import bundled
    >>> from qsplit.models.language.model import Sampling
    >>> folder = tempfile.TemporaryDirectory()
    >>> album = qsplit.open(f"{folder.name}/album.qsplit")
    >>> album.index(*bundled.photos()[:2]).encoded
    2
    >>> reply, = album.ask(bundled.photos()[0], "What is it?", sampling=Sampling(max_new_tokens=4))
    >>> reply.exact
    True
    >>> folder.cleanup()
    """
    return Album(
        store,
        model=model,
        revision=revision,
        dtype=dtype,
        device=device,
        resize=resize,
        codec=codec,
        compute=compute,
        trust_encoder=trust_encoder,
        snapshot=snapshot,
        language=language,
    )


def _index_on_ray(*args: Any, **options: Any) -> pipeline.IndexReport:
    """As `qsplit.cluster.index.index`, which is loaded here: few have Ray."""
    try:
        from qsplit.cluster import index
    except ImportError as error:
        raise UsageError(f"Indexing on Ray needs {error.name}.", fix="pip install 'qsplit[cluster]'") from error
    return index.index(*args, **options)


def _resize(settings: StoreSettings) -> Resize:
    return Resize(settings.min_pixels, settings.max_pixels, settings.resized_height, settings.resized_width)
