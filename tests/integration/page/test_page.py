"""The page in a browser, against a server with known content."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from support.browser import Tab
from support.page_stub import MARKUP, STATIC, Stub, encoded, serving, uniform

Open = Callable[..., Tab]
TEXTS = json.loads((STATIC / "texts.json").read_text("utf-8"))
COVERED = """() => {
    const outside = [];
    for (const one of document.querySelectorAll("button, select, textarea, input, a")) {
        if (one.checkVisibility() && !one.disabled && one.id !== "file") {
            one.scrollIntoView({ block: "center" });
            const box = one.getBoundingClientRect();
            const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
            const reached = top && (one.contains(top) || top.closest("label")?.contains(one));
            if (box.left < 0 || box.right > innerWidth || !reached) {
                outside.push(one.id || one.textContent);
            }
        }
    }
    return outside;
}"""
"""Controls that are outside the screen's width or below something else."""
NAMELESS = """() => {
    const named = (one) =>
        one.labels?.length || one.getAttribute("aria-label") || (one.tagName === "BUTTON" && one.textContent.trim());
    const controls = [...document.querySelectorAll("button, select, textarea, input")];
    return controls.filter((one) => !named(one)).map((one) => one.id);
}"""


@pytest.fixture(scope="module")
def stub() -> Stub:
    return Stub("demo")


@pytest.fixture(scope="module")
def page_server(stub: Stub) -> Iterator[str]:
    with serving(stub) as url:
        yield url


@pytest.fixture(scope="module")
def two_models() -> Iterator[str]:
    with serving(Stub("demo", "tuned")) as url:
        yield url


def boxes_shown(tab: Tab) -> None:
    tab.page.check("#show-boxes")
    tab.page.wait_for_selector("#boxes button")


def test_the_first_picture_is_drawn_and_nothing_is_wrong(tab: Open, page_server: str) -> None:
    one = tab(page_server)
    page = one.open()
    sky = one.pixel(0.45, 0.2)
    assert sky[2] > sky[0] > 60
    assert page.input_value("#picture") == "world-0"
    assert page.evaluate(NAMELESS) == []
    for switch in ("#show-views", "#show-boxes", "#show-mask"):
        page.check(switch)
    page.wait_for_selector("#views-note:has-text('4 views with borders, and 1 of the whole panorama.')")
    page.wait_for_selector("#boxes-note:has-text('2 found.')")
    one.check()


def test_a_dropped_picture_is_asked_about(tab: Open, page_server: str, stub: Stub) -> None:
    one = tab(page_server)
    page = one.open()
    one.drop("mine.png", encoded(uniform(10, 200, 30)), "image/png")
    page.wait_for_selector("#picture option:has-text('mine.png')", state="attached")
    page.wait_for_selector("#status:empty", state="attached")
    red, green, _ = one.pixel()
    assert red < 30 < 180 < green
    one.ask("what colour?")
    assert one.answers() == ["demo: what colour? after 0"]
    assert page.inner_text(".answer .quiet") == "5 tokens"
    one.ask("long")
    assert one.answers()[1] == "demo: long after 1"
    assert "cut at the limit" in page.inner_text("article:last-child .answer .quiet")
    body = stub.asked[-1]
    assert body["history"] == [["what colour?", "demo: what colour? after 0"]]
    assert (body["picture"], body["model"], body["max_tokens"]) == (page.input_value("#picture"), "demo", None)
    one.check()


def test_files_that_the_server_would_refuse_are_not_sent(tab: Open, page_server: str) -> None:
    one = tab(page_server)
    page = one.open()
    one.drop("notes.txt", b"text", "text/plain")
    assert page.inner_text("[role=alert]") == "notes.txt is not a JPEG or PNG file."
    one.drop("large.png", 3 << 19, "image/png")
    assert page.inner_text("[role=alert]") == "large.png has 1.5 MB. The server takes files up to 1.0 MB."
    page.click("#close-problem")
    assert page.locator("#problem").is_hidden()
    assert not [url for url in one.requests if url.endswith("/api/pictures")]


def test_two_models_answer_side_by_side(tab: Open, two_models: str) -> None:
    one = tab(two_models)
    page = one.open()
    one.ask("where?")
    assert one.answers() == ["demo: where? after 0", "tuned: where? after 0"]
    left, right = (page.locator(f".answer[data-model={name}]").bounding_box() for name in ("demo", "tuned"))
    assert left
    assert right
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    page.set_viewport_size({"width": 360, "height": 740})
    left, right = (page.locator(f".answer[data-model={name}]").bounding_box() for name in ("demo", "tuned"))
    assert left
    assert right
    assert left["x"] == right["x"]
    assert left["y"] + left["height"] <= right["y"]
    boxes_shown(one)
    page.select_option("#model", "tuned")
    page.wait_for_selector("#boxes button")
    asked = [parse_qs(url.partition("?")[2])["model"] for url in one.requests if "/boxes?" in url]
    assert asked == [["demo"], ["tuned"]]
    one.check()


def test_a_box_across_the_seam_is_seen_from_both_sides(tab: Open, page_server: str) -> None:
    one = tab(page_server)
    page = one.open()
    boxes_shown(one)
    centres = []
    for yaw in (175, -175):
        one.look(yaw)
        curve = page.locator("[id='psv-marker-boxes:0']")
        assert curve.is_visible()
        found, frame = curve.bounding_box(), page.locator("#frame").bounding_box()
        assert found
        assert frame
        # 24 degrees of a field of about 110: neither a line nor a curve around the whole sphere.
        assert 0.1 < found["width"] / frame["width"] < 0.4
        centres.append(found["x"] + found["width"] / 2 - frame["x"] - frame["width"] / 2)
        assert page.locator("[id='psv-marker-boxes:1']").is_hidden()
    assert centres[0] > 5
    assert centres[0] == pytest.approx(-centres[1], abs=3)
    one.look(0)
    assert page.locator("[id='psv-marker-boxes:0']").is_hidden()


def test_the_heat_map_is_blended_exactly(tab: Open, page_server: str) -> None:
    one = tab(page_server)
    page = one.open("#picture=black")
    assert one.pixel() == [0, 0, 0]
    page.check("input[value=attention]")
    assert page.inner_text("#heat-note") == TEXTS["en"]["heat.no_answer"]
    one.ask("what?")
    page.wait_for_selector("#heat-note:has-text('7.3')")
    assert page.inner_text("#heat-note") == "Attention from 0.0 to 7.3 times what even attention would give."
    assert one.pixel() == [153, 153, 0]
    page.fill("#opacity", "20")
    assert one.pixel() == [51, 51, 0]
    page.fill("#opacity", "100")
    assert one.pixel() == [255, 255, 0]
    page.check("input[value=none]")
    assert one.pixel() == [0, 0, 0]
    one.ask("no map")
    page.click("input[value=attention]")  # it is not checked for long
    page.wait_for_selector("[role=alert]:has-text('this model has no map of attention')")
    assert page.is_checked("input[value=none]")
    one.check("400")


def test_what_resembles_a_direction(tab: Open, page_server: str) -> None:
    one = tab(page_server)
    page = one.open("#picture=black")
    page.check("input[value=similar]")
    one.look(90)
    page.click("#similar-centre")
    page.wait_for_selector("#heat-note:has-text('0.12 to 1.00, compared with yaw 90°, pitch 0°')")
    assert one.pixel() == pytest.approx([0.6 * 255, 0.6 * 90, 0], abs=2)
    box = page.locator("#frame").bounding_box()
    assert box
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_selector("#heat-note:has-text('0.12'):not(:has-text('yaw 90°'))")
    asked = [parse_qs(url.partition("?")[2]) for url in one.requests if "/similar?" in url]
    assert [float(one["yaw"][0]) for one in asked] == [90.0, pytest.approx(125, abs=8)]
    one.check()


def test_masks_are_where_they_belong(tab: Open, page_server: str) -> None:
    one = tab(page_server)
    page = one.open("#picture=black")
    with page.expect_response("**/mask?*"):
        page.check("#show-mask")
    page.wait_for_timeout(300)
    one.look(180, 3)
    assert one.page.evaluate("Object.keys(panollava.overlays.state.overlays).length") == 1
    assert one.pixel(0.5, 0.47) == pytest.approx([255 * 150 / 255, 60 * 150 / 255, 60 * 150 / 255], abs=2)
    one.look(0)
    assert one.pixel() == [0, 0, 0]


def test_the_answer_can_be_stopped(tab: Open, page_server: str) -> None:
    one = tab(page_server)
    page = one.open()
    page.fill("#question", "endless")
    page.press("#question", "Enter")
    page.wait_for_selector(".words:has-text('more more')")
    assert page.is_disabled("#ask")
    page.click("#stop")
    page.wait_for_selector("html:not([data-busy])")
    assert page.inner_text(".answer .quiet") == "stopped"
    before = one.answers()
    page.wait_for_timeout(150)
    assert one.answers() == before
    page.click("#reset")
    assert one.answers() == []
    assert page.is_disabled("#reset")
    one.check()


def test_errors_are_read_out(tab: Open, page_server: str) -> None:
    one = tab(page_server)
    page = one.open()
    one.ask("busy")
    assert page.inner_text("[role=alert]") == "The server is busy. Try again in 7 seconds."
    one.ask("break")
    assert page.inner_text("[role=alert]") == "the model broke"
    assert one.answers()[-1].strip() == "half"
    one.ask("again")
    assert one.answers()[-1] == "demo: again after 0"
    one.check("429")


def test_markup_stays_text(tab: Open, page_server: str) -> None:
    one = tab(page_server)
    page = one.open()
    one.ask("markup")
    assert one.answers() == [MARKUP]
    boxes_shown(one)
    one.look(30, 10)
    assert page.inner_text(".boxes li:last-child .name") == MARKUP
    assert page.locator(".label:has-text('onerror')").is_visible()
    assert page.locator("main img, main b").count() == 0
    assert page.evaluate("window.broken") is None
    one.check()


def test_the_keyboard_reaches_everything(tab: Open, page_server: str) -> None:
    one = tab(page_server, reduced_motion="no-preference")
    page = one.open()
    boxes_shown(one)
    page.focus("#sphere")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert one.yaw() == pytest.approx(20)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    zoom = page.evaluate("panollava.viewer.getZoomLevel()")
    page.keyboard.press("+")
    assert page.inner_text("#where") == f"yaw 10.0°, pitch 10.0°, zoom {round(zoom) + 10}"
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if page.evaluate("document.activeElement.closest('#boxes') !== null"):
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#where:has-text('yaw 180.0°, pitch 3.0°')")
    assert one.yaw() == pytest.approx(180)
    assert {"zoom-in", "turns", "question", "ask", "model", "show-views", "show-mask"} - set(reached) == {"model"}
    one.check()


def test_it_fits_a_screen_of_360_pixels(tab: Open, two_models: str) -> None:
    one = tab(two_models, viewport={"width": 360, "height": 740}, has_touch=True, color_scheme="dark")
    page = one.open()
    one.ask("where is it, and which long-word-without-any-place-to-break-" + "x" * 60)
    boxes_shown(one)
    page.check("#show-views")
    page.check("input[value=similar]")
    page.wait_for_selector("#similar-centre")
    for language in ("en", "ko"):
        page.click(f"[data-language={language}]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate(COVERED) == []
    one.check()


def test_the_language_can_be_switched_and_is_remembered(tab: Open, page_server: str) -> None:
    assert set(TEXTS["en"]) == set(TEXTS["ko"])
    one = tab(page_server, locale="ko-KR")
    page = one.open()
    boxes_shown(one)
    one.ask("where?")
    shown = ["#ask", "#boxes-note", ".answer .quiet", "#where", "#layers-title"]
    korean = [page.inner_text(place) for place in shown]
    assert korean[0] == TEXTS["ko"]["talk.ask"]
    assert page.get_attribute("#sphere", "aria-label") == TEXTS["ko"]["viewer.label"]
    page.click("[data-language=en]")
    english = [page.inner_text(place) for place in shown]
    assert english[0] == TEXTS["en"]["talk.ask"]
    assert page.get_attribute("#sphere", "aria-label") == TEXTS["en"]["viewer.label"]
    assert not set(korean) & set(english)
    page.reload()
    page.wait_for_selector("html[data-ready=true][lang=en]")
    one.check()


def test_a_link_restores_the_view_and_the_question(tab: Open, page_server: str) -> None:
    one = tab(page_server)
    one.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = one.open()
    page.select_option("#picture", "black")
    page.wait_for_selector("#status:empty", state="attached")
    one.look(-120, 15)
    page.fill("#question", "what is here? 무엇&어디#")
    page.click("#zoom-in")
    page.click("#link")
    page.wait_for_selector("#status:has-text('clipboard')")
    address = page.evaluate("navigator.clipboard.readText()")
    other = tab(page_server)
    restored = other.open(address.partition("/#")[2] and "#" + address.partition("#")[2])
    assert restored.input_value("#picture") == "black"
    assert restored.input_value("#question") == "what is here? 무엇&어디#"
    assert other.yaw() == pytest.approx(240, abs=0.1)
    assert restored.inner_text("#where") == page.inner_text("#where") == "yaw -120.0°, pitch 15.0°, zoom 25"
    gone = tab(page_server).open("#picture=0123456789abcdef&question=where")
    assert gone.inner_text("[role=alert]").startswith("The server no longer has the picture 0123456789abcdef.")
    assert gone.input_value("#picture") == "world-0"
    assert gone.input_value("#question") == "where"
    one.check()


def test_late_results_of_another_picture_are_not_shown(tab: Open, page_server: str, stub: Stub) -> None:
    one = tab(page_server)
    page = one.open()
    stub.gate.clear()
    page.select_option("#picture", "late")
    page.wait_for_selector("#status:empty", state="attached")
    with page.expect_request("**/late/boxes?*"):
        page.check("#show-boxes")
    page.fill("#question", "endless")
    page.click("#ask")
    page.wait_for_selector(".words:has-text('more')")
    page.select_option("#picture", "black")
    page.wait_for_selector("#boxes button")
    stub.gate.set()
    page.wait_for_timeout(300)
    assert page.locator("#boxes .name").all_inner_texts()[0] == "red ring"
    assert page.evaluate("panollava.markers.getMarkers().some((one) => one.domElement.textContent === 'late')") is False
    assert one.answers() == []
    assert page.locator("html[data-busy]").count() == 0
    page.select_option("#picture", "late")
    page.wait_for_selector("#boxes .name:has-text('late')")
    assert page.inner_text(".answer .quiet") == "stopped"
    one.check()


def test_the_conversation_is_downloaded(tab: Open, two_models: str, tmp_path: Path) -> None:
    one = tab(two_models)
    page = one.open()
    one.ask("first?")
    one.ask("second?")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "talk.json")
    content = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert content["picture"] == {"id": "world-0", "name": "world 0"}
    assert [model["id"] for model in content["models"]] == ["demo", "tuned"]
    assert [turn["question"] for turn in content["turns"]] == ["first?", "second?"]
    second = content["turns"][1]["answers"][1]
    assert second == {"model": "tuned", "answer": "tuned: second? after 1", "finish_reason": "stop", "tokens": 4}
    one.check()


def test_a_key_is_asked_for_and_sent(tab: Open) -> None:
    with serving(Stub("demo", key="secret")) as url:
        one = tab(url)
        page = one.page
        page.goto(url)
        page.wait_for_selector("#key-form")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.wait_for_selector("[role=alert]:has-text('needs a key')")
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        page.wait_for_selector("html[data-ready=true]")
        assert page.locator("#key-form").is_hidden()
        assert page.locator("#problem").is_hidden()
        one.ask("where?")
        boxes_shown(one)
        page.reload()
        page.wait_for_selector("html[data-ready=true]")
        one.check("401")
