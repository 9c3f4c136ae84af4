"""Groups of duplicates as a page of HTML that needs nothing beside itself: pictures side by side, and what was matched.

Both pictures of a pair are enlarged and moved together, so that the same place can be looked at in both.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from qsplit.duplicates.detector import Group, Member
from qsplit.duplicates.matching.comparison import Evidence
from qsplit.errors import ImageError, NotFound, UsageError
from qsplit.media.images import Limits, open_picture
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow, ImageRow

__all__ = ["write_page"]

LARGE = 100  # pictures that are shown large, some 100 KB each; further ones are thumbnails
SHOWN = 2000  # pictures at all
_LARGE_EDGE = 1024  # pixels
_HUE = 47  # degrees from one matched patch to the next

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
article { border-top: 1px solid #8886; padding: .8rem 0; } h2 { font-size: 1rem; margin: 0 0 .4rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin-bottom: 1rem; }
figure { margin: 0; min-width: 0; } figcaption { overflow-wrap: anywhere; font-size: .85rem; }
.window { overflow: hidden; background: #8882; height: 22rem; cursor: zoom-in; touch-action: none; }
.sheet { position: relative; width: 100%; height: 100%; transform-origin: 0 0; display: grid; place-items: center; }
.frame { position: relative; height: 100%; aspect-ratio: var(--aspect); max-width: 100%; }
.frame img, .frame svg { position: absolute; inset: 0; width: 100%; height: 100%; }
rect { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke; } body.plain svg { display: none; }
.why { font-size: .85rem; margin: .2rem 0; } .keep { font-weight: 600; } .none { height: 100%; }
"""
_SCRIPT = """
const pictures = JSON.parse(document.getElementById('pictures').textContent);
for (const img of document.querySelectorAll('img[data-of]')) {
  if (img.dataset.of) img.src = pictures[img.dataset.of];
}
for (const pair of document.querySelectorAll('.pair')) {
  let k = 1, x = 0, y = 0, from = null;
  const sheets = pair.querySelectorAll('.sheet');
  const show = () => { for (const s of sheets) s.style.transform = `translate(${x}px,${y}px) scale(${k})`; };
  const zoom = (at, factor) => {
    const next = Math.min(16, Math.max(1, k * factor));
    x = at.x - (at.x - x) * next / k; y = at.y - (at.y - y) * next / k; k = next;
    if (k === 1) x = y = 0;
    show();
  };
  const place = (e) => {
    const box = e.currentTarget.getBoundingClientRect();
    return {x: e.clientX - box.x, y: e.clientY - box.y};
  };
  for (const w of pair.querySelectorAll('.window')) {
    w.addEventListener('wheel', (e) => {
      e.preventDefault();
      zoom(place(e), e.deltaY < 0 ? 1.25 : 0.8);
    }, {passive: false});
    w.addEventListener('dblclick', (e) => zoom(place(e), k > 1 ? 0 : 4));
    w.addEventListener('pointerdown', (e) => {
      from = [e.clientX - x, e.clientY - y];
      w.setPointerCapture(e.pointerId);
    });
    w.addEventListener('pointermove', (e) => {
      if (!from || k === 1) return;
      x = e.clientX - from[0];
      y = e.clientY - from[1];
      show();
    });
    w.addEventListener('pointerup', () => { from = null; });
  }
}
const groups = [...document.querySelectorAll('article')];
let at = -1;
document.addEventListener('keydown', (e) => {
  if (e.key === 'j' || e.key === 'k') {
    at = Math.min(groups.length - 1, Math.max(0, at + (e.key === 'j' ? 1 : -1)));
    groups[at].scrollIntoView();
  }
  if (e.key === 'm') document.body.classList.toggle('plain');
});
"""
_WHAT = {
    "exact": "the same bytes",
    "pixels": "the same pixels, other metadata",
    "copy": "copies",
    "similar": "similar shots, no copies",
}


def write_page(groups: Sequence[Group], path: Path, store: FeatureStore, limits: Limits, *, title: str) -> None:
    """Write the page whole or not at all. Raises `UsageError` for a name that is no .html, or a folder that cannot be
    written.
    """
    if path.suffix != ".html":
        raise UsageError(f"{path} does not end in .html.")
    page = _Page(store, limits)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.unlink(missing_ok=True)  # a link by this name would be written through
        with temporary.open("x", encoding="utf-8") as file:
            file.writelines(page.parts(groups, title))
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


class _Page:
    def __init__(self, store: FeatureStore, limits: Limits) -> None:
        self._store, self._limits = store, limits
        self._images: Mapping[str, ImageRow] = store.images()
        self._files: Mapping[str, FileRow] = store.files()
        self._pictures: dict[str, str] = {}  # each once, however many pairs it is in

    def parts(self, groups: Sequence[Group], title: str) -> Iterator[str]:
        name, script = html.escape(title), base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
        policy = (
            f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'; "
            "form-action 'none'; base-uri 'none'"
        )
        yield (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{name}</title>'
            f"<style>{_STYLE}</style><h1>{name}</h1><p>{len(groups)} groups. Wheel or double click: enlarge both "
            f"pictures. j and k: next and previous group. m: show or hide what was matched.</p>"
        )
        for number, group in enumerate(groups, 1):
            yield f"<article><h2>{number}. {_WHAT[group.kind]}, {len(group.members)} files</h2>"
            keep, *others = group.members
            for member in others:
                yield self._pair(keep, member)
            yield "</article>\n"
        pictures = json.dumps(self._pictures).replace("<", "\\u003c")
        yield f'<script type="application/json" id="pictures">{pictures}</script><script>{_SCRIPT}</script></html>\n'

    def _pair(self, keep: Member, member: Member) -> str:
        figures = self._figure(keep, member.evidence, 0) + self._figure(member, member.evidence, 1)
        return f'<div class="pair">{figures}</div><p class="why">{html.escape(_why(member))}</p>'

    def _figure(self, one: Member, evidence: Evidence | None, side: int) -> str:
        image, file = self._images[one.id], self._files[one.path]
        frame = (
            f'<div class="frame" style="--aspect:{image.width}/{image.height}">'
            f'<img alt="" data-of="{html.escape(self._shown(one, image))}">{_patches(evidence, side, image)}</div>'
        )
        taken = image.taken_at.strftime("%Y-%m-%d %H:%M:%S") if image.taken_at else "no date"
        size = f"{image.width} x {image.height} {image.format}, {file.size:,} bytes"
        facts = f"{size}, {taken}, {image.camera or 'no camera'}"
        mark = '<span class="keep">keep</span> ' if side == 0 else ""
        return (
            f'<figure><div class="window"><div class="sheet">{frame}</div></div>'
            f"<figcaption>{mark}{html.escape(one.path)}<br>{html.escape(facts)}</figcaption></figure>"
        )

    def _shown(self, one: Member, image: ImageRow) -> str:
        """The id of a picture that the page holds, or nothing: from the file if it is there, else the thumbnail."""
        if one.id not in self._pictures:
            if len(self._pictures) >= SHOWN:
                return ""
            large = _large(one.path, image, self._limits) if len(self._pictures) < LARGE else None
            try:
                data = large or self._store.thumbnail(one.id)
            except NotFound:
                data = b""
            self._pictures[one.id] = f"data:image/webp;base64,{base64.b64encode(data).decode()}" if data else ""
        return one.id


def _large(path: str, image: ImageRow, limits: Limits) -> bytes | None:
    """The file in up to 1024 pixels, if it is what was indexed and can be read."""
    try:
        picture = open_picture(path, limits)
    except ImageError:
        return None
    if picture.image_id != image.image_id:
        return None
    shown, encoded = picture.rgb.copy(), io.BytesIO()
    shown.thumbnail((_LARGE_EDGE, _LARGE_EDGE))
    shown.save(encoded, "WEBP", quality=80)
    return encoded.getvalue()


def _patches(evidence: Evidence | None, side: int, image: ImageRow) -> str:
    """A square around each place that was matched, in the same colour in both pictures."""
    if evidence is None:
        return ""
    width, height = 100.0, 100.0 * image.height / image.width
    half = max(width, height) / 40
    squares = (
        f'<rect x="{patch[2 * side] * width - half:.2f}" y="{patch[2 * side + 1] * height - half:.2f}" '
        f'width="{2 * half:.2f}" height="{2 * half:.2f}" stroke="hsl({number * _HUE % 360} 90% 55%)"/>'
        for number, patch in enumerate(evidence.patches)
    )
    return f'<svg viewBox="0 0 {width:.2f} {height:.2f}">{"".join(squares)}</svg>'


def _why(member: Member) -> str:
    moved = "--trash would move it." if member.movable else f"--trash leaves it. {member.reason or ''}".rstrip()
    found = member.evidence
    if found is None:
        return f"The same bytes or pixels. {moved}"
    turn = f", turned by {found.turn:.0f} degrees" if abs(found.turn) >= 0.5 else ""
    return (
        f"Score {member.score:.3f}: {found.tokens} patch tokens and {found.landmarks} landmarks agree on one map "
        f"(the second is {found.scale:.2f} times as large{turn}{', mirrored' if found.mirrored else ''}); pixels agree "
        f"to {found.agreement:.0%}; the first holds {found.covered:.0%} of the second. "
        f"{moved}"
    )
