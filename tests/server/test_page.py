"""The album page in a real browser, over a real service, a real store and the bundled checkpoint."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from browsing import WAIT, Visit, chromium
from listening import listening
from pictures import encoded, photograph
from PIL import Image
from PIL.ExifTags import IFD, Base
from playwright.sync_api import Browser, JSHandle, expect
from rows import picture
from serving import KEY, READ_ONLY, made_album

from qsplit.album import Album
from qsplit.mini import scenes
from qsplit.mini.scenes import Scene, Thing
from qsplit.models.language.model import LanguageModel
from qsplit.models.vision.encoder import VisionEncoder
from qsplit.server.web import page as page_module
from qsplit.store.feature_store import FeatureStore
from qsplit.store.records import FileRow

expect.set_options(timeout=WAIT)

SERVER = Path(page_module.__file__).parent
STAR, RING = Thing("star", "red", 0.2, 0.2, 0.14), Thing("ring", "blue", 0.8, 0.8, 0.14)
DESCRIBED = "A red star at the top left and a blue ring at the bottom right, on a white background."
MARKUP = "<img src=x onerror=window.bad=1>"
MANY = 100_000


# --- what is looked at ---


def drawn(*things: Thing, background: str = "white", seed: int = 5) -> Image.Image:
    return scenes.draw(Scene(things, background, 168, 168), np.random.default_rng(seed))


def fill_folder(folder: Path) -> None:
    """Drawings, photographs, copies as people make them, and a file whose name is markup."""
    drawn(STAR, RING).save(folder / "star and ring.png")
    for i, (shape, colour) in enumerate(product(("cross", "triangle"), ("black", "pink"))):
        drawn(Thing(shape, colour, 0.2 + 0.1 * i, 0.5, 0.15), background="grey", seed=i).save(folder / f"other {i}.png")
    for name in ("astronaut", "drums", "galaxies", "honey-bee", "koala", "machu-picchu", "multimeter", "rocket"):
        photograph(f"{name}.jpg").save(folder / f"{name}.jpg", quality=92)
    exif = Image.Exif()
    exif[Base.Make], exif[Base.Model] = "PENTAX", "PENTAX K-3"
    exif.get_ifd(IFD.Exif)[Base.DateTimeOriginal] = "2021:05:06 07:08:09"
    photograph("kingfisher.jpg").save(folder / "kingfisher.jpg", exif=exif, quality=90)
    coffee = photograph("coffee.jpg")
    coffee.save(folder / "coffee.jpg", quality=92)
    shutil.copyfile(folder / "coffee.jpg", folder / "coffee (1).jpg")
    panda = photograph("red-panda.jpg")
    panda.save(folder / "red-panda.jpg", quality=92)
    panda.resize((panda.width // 2, panda.height // 2)).save(folder / "red-panda-small.jpg", quality=85)
    drawn(Thing("square", "green", 0.5, 0.5, 0.2)).save(folder / f"{MARKUP}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    fill_folder(made)
    return made


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory, folder: Path, mini_vision: VisionEncoder,
          mini_language: LanguageModel) -> Album:  # fmt: skip
    made = made_album(tmp_path_factory.mktemp("album"), [folder], mini_vision, mini_language)
    made.refresh(semantic=True)
    return made


@pytest.fixture(scope="module")
def served(album: Album, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, listening(album, folders=(str(folder),)) as (address, _):
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("trash")))
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def shots(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where screenshots are kept."""
    chosen = request.config.getoption("--screenshots")
    path = Path(chosen) if chosen else tmp_path
    path.mkdir(parents=True, exist_ok=True)
    return path


def visiting(browser: Browser, address: str, shots: Path, **options: object) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)  # type: ignore[arg-type]
    visit = Visit.of(context.new_page(), address, shots)
    yield visit
    context.close()
    assert not visit.wrong


@pytest.fixture
def visit(browser: Browser, served: str, shots: Path) -> Iterator[Visit]:
    yield from visiting(browser, served, shots)


# --- the first run ---


@pytest.fixture
def empty(tmp_path: Path, mini_vision: VisionEncoder, mini_language: LanguageModel) -> Iterator[str]:
    with listening(made_album(tmp_path, (), mini_vision, mini_language)) as (address, _):
        yield address


def test_an_empty_album_says_what_to_do_and_takes_pictures(
    browser: Browser, empty: str, folder: Path, shots: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture at all")
    for visit in visiting(browser, empty, shots):
        visit.go()
        expect(visit.page.get_by_role("heading", name="This album is empty")).to_be_visible()
        visit.keep("first-run")
        sent = [folder / "coffee.jpg", folder / "star and ring.png", broken]
        visit.page.set_input_files("#files", sent)
        expect(visit.page.locator("#uploads")).to_contain_text("3 of 3 pictures sent; 0 were known, 1 refused")
        expect(visit.page.locator("#uploads")).to_contain_text("broken.jpg")
        expect(visit.page.locator("#count")).to_have_text("2 in all")
        visit.keep("uploaded")
        drop(visit, "#grid", folder / "coffee.jpg", folder / "kingfisher.jpg")
        expect(visit.page.locator("#uploads")).to_contain_text("2 of 2 pictures sent; 1 were known, 0 refused")
        expect(visit.page.locator("#count")).to_have_text("3 in all")
        visit.page.click("#uploads button")
        search_is_prepared(visit)


def search_is_prepared(visit: Visit) -> None:
    """A text finds nothing before the model made vectors; the page offers to have them made."""
    visit.page.fill("#search > input", DESCRIBED)
    visit.page.keyboard.press("Enter")
    expect(visit.page.get_by_role("heading", name="Pictures cannot be found by texts yet")).to_be_visible()
    visit.keep("not-prepared")
    visit.page.get_by_role("button", name="Prepare now").click()
    expect(visit.page.locator(".job[data-kind=refresh]")).to_have_attribute("data-state", "done")
    visit.page.go_back()
    expect(visit.page.locator("#tile-0 img")).to_have_attribute("alt", re.compile("."))


def test_a_picture_whose_file_is_gone_is_shown_small_and_can_be_forgotten(
    browser: Browser, folder: Path, tmp_path: Path, mini_vision: VisionEncoder, shots: Path
) -> None:
    shutil.copy(folder / "coffee.jpg", tmp_path)
    album = made_album(tmp_path, [tmp_path / "coffee.jpg"], mini_vision)
    (tmp_path / "coffee.jpg").unlink()
    with listening(album) as (address, _):
        for visit in visiting(browser, address, shots):
            visit.go()
            visit.page.click("#tile-0 a[href]")
            expect(visit.page.locator("#picture .gone")).to_be_visible()
            visit.until("document.querySelector('.stage img').naturalWidth === 256")
            visit.page.get_by_role("button", name="Forget").click()
            visit.page.click("#confirm [value=yes]")
            expect(visit.page.get_by_role("heading", name="This album is empty")).to_be_visible()


def held(visit: Visit, files: Iterable[Path]) -> JSHandle:
    """Files as a mouse or the clipboard holds them."""
    given = [{"name": file.name, "data": base64.b64encode(file.read_bytes()).decode()} for file in files]
    script = """(files) => {
      const held = new DataTransfer();
      for (const {name, data} of files) {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        held.items.add(new File([bytes], name, {type: name.endsWith('png') ? 'image/png' : 'image/jpeg'}));
      }
      return held;
    }"""
    return visit.page.evaluate_handle(script, given)


def drop(visit: Visit, selector: str, *files: Path) -> None:
    """Let files go over a part of the page."""
    carried = held(visit, files)
    visit.page.dispatch_event("body", "dragenter", {"dataTransfer": carried})
    visit.page.dispatch_event(selector, "drop", {"dataTransfer": carried})


def paste(visit: Visit, file: Path) -> None:
    script = "(held) => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: held}))"
    visit.page.evaluate(script, held(visit, [file]))


# --- looking for pictures ---


def test_a_text_finds_its_picture_and_the_address_is_the_search(visit: Visit) -> None:
    visit.go()
    visit.page.keyboard.press("/")
    visit.page.keyboard.type(DESCRIBED)
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#tile-0 img")).to_have_attribute("alt", re.compile("star and ring"))
    visit.keep("search")
    visit.page.reload()
    expect(visit.page.locator("#tile-0 img")).to_have_attribute("alt", re.compile("star and ring"))
    assert visit.page.input_value("#search > input") == DESCRIBED
    visit.page.go_back()
    expect(visit.page.locator("#count")).to_contain_text("in all")


def test_conditions_are_chips_that_can_be_taken_away(visit: Visit) -> None:
    visit.go()
    visit.page.click("#filter-button")
    visit.page.fill("[name=camera]", "pentax")
    visit.page.fill("[name=since]", "2021-05")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#count")).to_have_text("1 found")
    assert visit.tiles()[0].startswith("kingfisher.jpg")
    expect(visit.page.locator(".chip")).to_have_count(2)
    visit.keep("filters")
    visit.page.get_by_role("button", name="Remove: Camera: pentax").click()
    visit.page.get_by_role("button", name="Remove: Since: 2021-05").click()
    expect(visit.page.locator("#count")).to_contain_text("in all")


def test_no_good_match_is_said_and_the_nearest_shown_on_request(visit: Visit) -> None:
    visit.go("/?q=a+brown+diamond+at+the+bottom+left,+on+a+yellow+background")
    expect(visit.page.get_by_role("heading", name="No good match")).to_be_visible()
    visit.keep("no-good-match")
    visit.page.get_by_role("button", name="Show the nearest anyway").click()
    expect(visit.page.locator("#count")).to_contain_text("found")
    assert "everything=1" in visit.page.url


def test_a_picture_that_is_dropped_or_pasted_finds_its_like(visit: Visit, folder: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    turned.write_bytes(encoded(photograph("coffee.jpg").resize((300, 200)), "JPEG"))
    visit.go()
    drop(visit, "[data-drop=search]", turned)
    expect(visit.page.locator("#tile-0 img")).to_have_attribute("alt", re.compile("^coffee"))
    expect(visit.page.locator(".chip")).to_contain_text("like turned.jpg")
    paste(visit, folder / "red-panda.jpg")
    expect(visit.page.locator("#tile-0 img")).to_have_attribute("alt", re.compile("^red-panda"))
    visit.page.reload()
    expect(visit.page.get_by_role("heading", name="The picture is not here any more")).to_be_visible()


# --- one picture ---


def test_a_picture_is_shown_with_its_exif_and_its_like(visit: Visit) -> None:
    visit.go("/?camera=pentax")
    visit.page.click("#tile-0 a[href]")
    expect(visit.page.locator("#picture-title")).to_have_text("kingfisher.jpg")
    expect(visit.page.locator("dl.facts")).to_contain_text("PENTAX")
    visit.page.click(".exif summary")
    expect(visit.page.locator(".exif table")).to_contain_text("2021:05:06 07:08:09")
    visit.keep("picture")
    visit.go("/?path=*red-panda.jpg")
    visit.page.wait_for_selector("#tile-0 a[href]")
    visit.page.locator("#grid").press("Enter")
    expect(visit.page.locator("#picture-title")).to_have_text("red-panda.jpg")
    visit.page.keyboard.press("s")
    expect(visit.page.locator("#tile-0 img")).to_have_attribute("alt", re.compile("^red-panda-small.jpg"))
    visit.keep("similar")


def test_questions_are_answered_and_followed_up(visit: Visit, album: Album) -> None:
    visit.go("/?path=*ring.png")
    visit.page.click("#tile-0 a[href]")
    first, further = "What colour is the star?", "What colour is the ring?"
    with visit.page.expect_response("**/v1/chat/completions") as response:
        assert asked(visit, first) == "red"
    assert response.value.headers["content-type"].startswith("text/event-stream")
    (expected,) = album.ask("star and ring.png", further, history=[(first, "red")])
    assert asked(visit, further) == expected.answer.strip().lower().rstrip(".")
    expect(visit.page.locator(".who").last).to_contain_text("answered by")
    visit.keep("ask")
    visit.page.get_by_role("button", name="Begin anew").click()
    assert asked(visit, further) == "blue"
    expect(visit.page.locator(".answer")).to_have_count(1)


def asked(visit: Visit, question: str) -> str:
    """What the page answers when its last piece has come."""
    visit.page.fill(".ask textarea", question)
    visit.page.keyboard.press("Enter")
    last = visit.page.locator(".answer").last
    expect(last).to_have_attribute("aria-busy", "false")
    return last.inner_text().strip().lower().rstrip(".")


# --- duplicates ---


def test_duplicates_are_decided_by_keys_on_real_files(visit: Visit, folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    visit.go("/?view=duplicates")
    visit.page.get_by_role("button", name="Look for duplicates").first.click()
    expect(visit.page.locator(".job[data-kind=duplicates]").first).to_have_attribute("data-state", "done")
    visit.page.click("nav a[data-view=duplicates]")
    expect(visit.page.locator("#duplicates .counter")).to_have_text("1 of 2, 0 decided")
    visit.page.keyboard.press("s")
    expect(visit.page.locator("figure.kept .name")).to_have_text("red-panda.jpg")
    expect(visit.page.locator("figure.other .name")).to_have_text("red-panda-small.jpg")
    assert visit.page.locator("figure.kept .patches rect").count() > 2
    visit.page.keyboard.press("z")
    assert "scale(4)" in str(visit.page.get_attribute("figure.other .sheet", "style"))
    visit.page.keyboard.press("z")
    visit.keep("duplicates")
    visit.page.keyboard.press("x")
    expect(visit.page.locator("figure.kept .name")).to_have_text("red-panda-small.jpg")
    visit.page.keyboard.press("x")
    expect(visit.page.locator("[data-do=trash]")).to_be_disabled()
    expect(visit.page.locator("#duplicates .why")).to_contain_text("only if the kind “copies” is chosen")
    visit.page.keyboard.press("t")
    visit.page.select_option("[name=kinds]", "copy")
    expect(visit.page.locator("#duplicates .counter")).to_have_text("1 of 1, 0 decided")
    assert {path.name for path in folder.iterdir()} == before, "a copy is not moved unless its kind is chosen"
    expect(visit.page.locator("[data-do=trash]")).to_be_enabled()
    visit.page.keyboard.press("t")
    expect(visit.page.locator("#duplicates .counter")).to_have_text("0 of 0, 1 decided")
    assert before - {path.name for path in folder.iterdir()} == {"red-panda-small.jpg"}
    visit.page.keyboard.press("u")
    expect(visit.page.locator("#duplicates .counter")).to_have_text("1 of 1, 0 decided")
    assert {path.name for path in folder.iterdir()} == before
    for pressed, counter in (("n", "0 of 0, 1 decided"), ("u", "1 of 1, 0 decided"), ("n", "0 of 0, 1 decided")):
        visit.page.keyboard.press(pressed)
        expect(visit.page.locator("#duplicates .counter")).to_have_text(counter)
    visit.page.select_option("[name=kinds]", "exact,pixels,copy")
    visit.page.reload()
    expect(visit.page.locator("#duplicates .counter")).to_have_text("1 of 1, 0 decided")


def test_all_duplicates_can_be_accepted_at_once_and_taken_back(visit: Visit, folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    visit.go("/?view=jobs")
    visit.page.click("#jobs button:has-text('Look for duplicates')")
    expect(visit.page.locator(".job[data-kind=duplicates]").first).to_have_attribute("data-state", "done")
    visit.page.click("nav a[data-view=duplicates]")
    visit.page.select_option("[name=kinds]", "exact")
    expect(visit.page.locator("#duplicates .counter")).to_have_text("1 of 1, 0 decided")
    visit.page.click("[data-do=all]")
    visit.page.click("#confirm [value=yes]")
    expect(visit.page.locator(".note").last).to_contain_text("In the trash: 1; left where they were: 0.")
    assert len(before - {path.name for path in folder.iterdir()}) == 1
    visit.page.click(".note button:has-text('Undo')")
    expect(visit.page.locator(".note").last).to_contain_text("Brought back")
    assert {path.name for path in folder.iterdir()} == before


# --- checks and jobs ---


def test_a_check_runs_as_a_job_that_can_be_held_and_shows_what_it_found(visit: Visit, album: Album) -> None:
    visit.go("/?view=checks")
    visit.page.select_option("[name=policy]", "moderation")
    expect(visit.page.get_by_role("heading", name="The policy moderation was not run yet")).to_be_visible()
    job = visit.page.locator(".job[data-kind=check]").first
    with album.language._lock:  # it would be done before anybody can hold it
        visit.page.click("#checks [data-do=run]")
        with visit.page.expect_response(lambda response: response.url.endswith("/pause")):
            job.locator("[data-do=pause]").click()
    expect(job).to_have_attribute("data-state", "paused")
    visit.keep("jobs")
    job.locator("[data-do=resume]").click()
    expect(job).to_have_attribute("data-state", "done")
    visit.page.click("nav a[data-view=checks]")
    flags = visit.page.locator("#checks tbody tr")
    expect(flags.first).to_be_visible()
    shown = [str(name) for name in flags.evaluate_all("(rows) => rows.map((row) => row.className)")]
    assert shown == sorted(shown, key=lambda name: name != "flagged")
    visit.keep("checks")


# --- many pictures ---


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A hundred thousand rows that are put straight into a store, one a day and 137 minutes."""
    place = tmp_path_factory.mktemp("many")
    store = FeatureStore(place / "album.qsplit", create=True)
    shades = [encoded(Image.new("RGB", (16, 12), (9 * i, 120, 250 - 9 * i)), "WEBP") for i in range(25)]
    newest = datetime(2026, 1, 1, tzinfo=UTC)
    for start in range(0, MANY, 25_000):
        put_some(store, range(start, start + 25_000), newest, shades)
    with listening(Album(place / "album.qsplit", device="cpu")) as (address, _):
        yield address


def put_some(store: FeatureStore, numbers: range, newest: datetime, shades: list[bytes]) -> None:
    model = picture(0)
    pictures = [
        replace(
            model,
            image_id=f"{n:064x}",
            pixels_digest=f"{n:064x}",
            taken_at=newest - n * timedelta(minutes=137),
            thumbnail=shades[n % len(shades)],
        )
        for n in numbers
    ]
    store.put_images(pictures)
    store.put_files([FileRow(f"/album/{n:06}.jpg", f"{n:064x}", 1000, 0, "ok") for n in numbers])


@pytest.mark.parametrize("width", [1280, 400])  # pixels: in the narrow one the scroll height is capped
def test_a_hundred_thousand_pictures_are_scrolled_without_a_halt(
    browser: Browser, many: str, shots: Path, width: int
) -> None:
    for visit in visiting(browser, many, shots):
        visit.page.set_viewport_size({"width": width, "height": 800})
        visit.go()
        expect(visit.page.locator("#count")).to_have_text("100,000 in all")
        expect(visit.page.locator("#tile-0 img")).to_have_attribute("alt", re.compile("^000000.jpg"))
        visit.page.keyboard.press("End")
        expect(visit.page.locator(f"#tile-{MANY - 1} img")).to_have_attribute("alt", re.compile("^099999.jpg"))
        visit.keep(f"last-of-many-{width}")
        assert min(longest_task(visit) for _ in range(3)) < 200
        visit.page.locator("#scrubber").press("Home")
        visit.page.locator("#scrubber").press("PageDown")
        expect(visit.page.locator("#scrubber")).to_have_attribute("aria-valuetext", "January 2025")
        expect(visit.page.get_by_role("gridcell", name=re.compile("Jan 31, 2025")).first).to_be_visible()
        assert visit.page.locator("img").count() <= 300
        assert visit.page.evaluate("document.querySelector('#grid').scrollHeight") <= 4_000_000


def longest_task(visit: Visit) -> float:
    """Milliseconds that the page was busy at one go on its way from the first picture to the last, and again by End.

    Of several times the best counts: a test before this one, or another program, may have halted the browser.
    """
    visit.page.locator("#grid").press("Home")
    expect(visit.page.locator("#tile-0 img")).to_have_attribute("alt", re.compile("^000000.jpg"))
    visit.page.evaluate("window.longest = 0")
    drag_scrollbar(visit)
    expect(visit.page.locator(f"#tile-{MANY - 1} img")).to_have_attribute("alt", re.compile("^099999.jpg"))
    visit.page.locator("#grid").press("Home")
    visit.page.locator("#grid").press("End")
    expect(visit.page.locator(f"#tile-{MANY - 1} img")).to_have_attribute("alt", re.compile("^099999.jpg"))
    longest: float = visit.page.evaluate("window.longest")
    return longest


def drag_scrollbar(visit: Visit) -> None:
    """Pull the scrollbar from the top to the bottom in a hundred steps, a frame each."""
    visit.page.evaluate("""async () => {
      const grid = document.querySelector('#grid');
      for (let step = 1; step <= 100; step++) {
        grid.scrollTop = grid.scrollHeight * step / 100;
        await new Promise(requestAnimationFrame);
      }
    }""")


# --- strangers' words, keys, languages ---


def test_names_and_captions_are_text_and_nothing_else(visit: Visit, album: Album) -> None:
    shown = album.locate(f"{MARKUP}.png").image.image_id
    album.store.vectors(album.store.settings().encoder).put_captions("by hand", {shown: MARKUP})
    visit.go(f"/?picture={shown}")
    expect(visit.page.locator("#picture-title")).to_have_text(f"{MARKUP}.png")
    expect(visit.page.locator("#picture .caption")).to_have_text(MARKUP)
    visit.page.keyboard.press("s")
    visit.page.go_back()
    expect(visit.page.locator("#picture .caption")).to_have_text(MARKUP)
    assert visit.page.evaluate("window.bad") is None
    assert visit.page.locator("img[src=x]").count() == 0


def test_a_key_is_asked_for_once(browser: Browser, album: Album, shots: Path) -> None:
    with listening(album, keys=(KEY,), read_only_keys=(READ_ONLY,)) as (address, _):
        for visit in visiting(browser, address, shots):
            visit.go()
            visit.page.fill("#key input", "a wrong one")
            visit.page.keyboard.press("Enter")
            expect(visit.page.locator("#key .problem")).to_have_text("The server does not know this key.")
            visit.keep("key")
            visit.page.fill("#key input", READ_ONLY)
            visit.page.keyboard.press("Enter")
            expect(visit.page.locator("#count")).to_contain_text("in all")
            visit.until("document.querySelector('#tile-0 img').naturalWidth > 0")
            visit.page.reload()
            expect(visit.page.locator("#count")).to_contain_text("in all")
            assert visit.page.evaluate("Object.values(sessionStorage)") == [READ_ONLY]
            visit.page.goto(f"{address}/?view=jobs")
            visit.page.click("#jobs button:has-text('Index the folders')")
            expect(visit.page.locator(".note.bad")).to_contain_text("This key is read-only.")


def test_the_page_is_worked_by_keys_alone(visit: Visit) -> None:
    visit.go()
    visit.page.wait_for_selector("#tile-0 a[href]")
    visit.page.keyboard.press("Tab")
    expect(visit.page.get_by_role("link", name="Skip to the content")).to_be_focused()
    visit.page.keyboard.press("?")
    expect(visit.page.locator("#help")).to_be_visible()
    visit.keep("help")
    visit.page.keyboard.press("Escape")
    visit.page.keyboard.press("End")
    expect(visit.page.locator("#grid")).to_be_focused()
    visit.page.keyboard.press("ArrowLeft")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#picture")).to_be_visible()
    first = visit.page.url
    visit.page.keyboard.press("ArrowRight")
    expect(visit.page).not_to_have_url(first)
    visit.page.keyboard.press("a")
    expect(visit.page.locator(".ask textarea")).to_be_focused()
    visit.page.keyboard.press("Escape")
    expect(visit.page.locator("#picture")).to_be_hidden()
    expect(visit.page.locator("#grid")).to_be_focused()


def test_a_server_that_cannot_be_reached_is_said_with_what_to_do(visit: Visit) -> None:
    visit.go()
    visit.page.context.set_offline(True)
    visit.page.fill("#search > input", "anything")
    visit.page.keyboard.press("Enter")
    expect(visit.page.get_by_role("heading", name="That did not work")).to_be_visible()
    expect(visit.page.locator("#instead")).to_contain_text("The server cannot be reached.")
    visit.keep("offline")
    visit.page.context.set_offline(False)
    visit.page.fill("#search > input", DESCRIBED)
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#tile-0 img")).to_have_attribute("alt", re.compile("star and ring"))


@pytest.mark.parametrize("view", ["album", "duplicates", "checks", "jobs", "settings"])
def test_every_view_is_there_in_chinese_and_in_the_dark(browser: Browser, served: str, shots: Path, view: str) -> None:
    for visit in visiting(browser, served, shots, locale="zh-CN", color_scheme="dark"):
        visit.go(f"/?view={view}")
        assert visit.page.get_attribute("html", "lang") == "zh-CN"
        words = page_module.words_in("zh")
        expect(visit.page.locator(f"#{view} h1")).to_have_text(words[f"nav.{view}"])
        visit.page.wait_for_load_state("networkidle")
        visit.keep(f"zh-{view}")


def test_appearance_and_language_are_chosen_on_the_page(visit: Visit) -> None:
    visit.go("/?view=settings")
    expect(visit.page.locator("#settings .status")).to_contain_text("Pictures")
    visit.page.select_option("[name=theme]", "dark")
    visit.keep("settings")
    visit.page.select_option("[name=language]", "zh")
    expect(visit.page.locator("#settings h1")).to_have_text("设置")
    assert visit.page.get_attribute("html", "data-theme") == "dark"


def test_both_languages_say_the_same() -> None:
    english, chinese = page_module.words_in("en"), page_module.words_in("zh")
    assert english.keys() == chinese.keys()
    for key in english:
        assert set(re.findall(r"\{\w+}", english[key])) == set(re.findall(r"\{\w+}", chinese[key])), key


def test_every_word_is_there_and_is_used() -> None:
    paths = [*SERVER.glob("static/*.js"), *SERVER.glob("templates/*.html")]
    source = "".join(path.read_text() for path in paths)
    words = page_module.words_in("en")
    used = set(re.findall(r"\bt\(\s*'([^']+)'", source)) | set(re.findall(r"""words\[["']([\w.-]+)["']]""", source))
    assert used <= words.keys()
    begun = tuple(re.findall(r"`(\w+\.)\$\{", source) + re.findall(r"""words\["([\w.]+\.)" ~""", source))
    quoted = set(re.findall(r"'([a-z][\w.-]+)'", source))
    assert not [key for key in words if key not in used | quoted and not key.startswith(begun)]


def test_the_page_takes_nothing_from_elsewhere() -> None:
    for path in SERVER.rglob("*"):
        if path.suffix in {".js", ".css", ".html"}:
            found = re.findall(r"https?://[^\s'\"]+", path.read_text())
            assert set(found) <= {"http://www.w3.org/2000/svg"}, path
            assert "innerHTML" not in path.read_text(), path
    assert json.loads((SERVER / "templates/en.json").read_text()) == page_module.words_in("en")
