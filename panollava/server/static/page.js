// Starts the page: the server's models and pictures, own files, links, and errors.

import * as api from "./api.js";
import { Layers } from "./layers.js";
import { Sphere } from "./sphere.js";
import { Talk } from "./talk.js";
import { loadTexts, say, useLanguage } from "./texts.js";

const element = (id) => document.getElementById(id);
const state = { info: { models: [], pictures: [], upload_bytes: Infinity }, picture: null, model: null };
let sphere = null;
let layers = null;
let talk = null;
let opening = null; // AbortController of the picture that is being loaded
let wanted = null; // what is tried again when a key has been given

/** Shows an error where it is read out. */
function report(error) {
    if (error.name === "AbortError") {
        return;
    }
    if (error.status === 401) {
        element("key-form").hidden = false;
    }
    say(element("alert"), error.text ?? "error.server", error.values ?? { message: error.message });
    element("problem").hidden = false;
}

function forget() {
    element("problem").hidden = true;
    say(element("alert"), "");
}

/** Opens a picture of the server; `view` may have yaw, pitch and zoom. */
async function open(picture, view = {}) {
    opening?.abort();
    opening = new AbortController();
    const { signal } = opening;
    wanted = () => open(picture, view);
    say(element("status"), "loading");
    try {
        const blob = await api.picture(picture.id, signal);
        if (signal.aborted) {
            return;
        }
        layers.stop();
        if (!(await draw(blob, view)) || signal.aborted) {
            return;
        }
    } catch (error) {
        if (!signal.aborted) {
            say(element("status"), state.picture ? "" : "picture.none");
            choose(state.picture);
            report(error.status === 404 ? new api.Failure("error.gone", { picture: picture.name ?? picture.id }) : error);
        }
        return;
    }
    wanted = null;
    talk.stop();
    state.picture = picture;
    choose(picture);
    say(element("status"), "");
    talk.pictureChanged();
    layers.pictureChanged();
    await sphere.rendered();
    document.documentElement.dataset.ready = "true";
}

async function draw(blob, view) {
    try {
        return await sphere.open(blob, view);
    } catch {
        throw new api.Failure("error.unreadable");
    }
}

/** Makes the list of pictures show one of them, which is added where it is missing. */
function choose(picture) {
    const list = element("picture");
    if (picture && ![...list.options].some((option) => option.value === picture.id)) {
        list.add(new Option(picture.name ?? picture.id, picture.id));
    }
    list.value = picture?.id ?? "";
}

/** Sends an own file and opens it. */
async function send(file) {
    forget();
    const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1);
    const { upload_bytes: limit } = state.info;
    if (!["image/jpeg", "image/png"].includes(file.type)) {
        report(new api.Failure("error.kind", { name: file.name }));
        return;
    }
    if (file.size > limit) {
        const size = megabytes(file.size);
        report(new api.Failure("error.too_large", { name: file.name, size, limit: megabytes(limit) }));
        return;
    }
    opening?.abort();
    opening = new AbortController();
    const { signal } = opening;
    wanted = () => send(file);
    say(element("status"), "uploading", { name: file.name });
    try {
        const { id } = await api.upload(file, signal);
        if (!signal.aborted) {
            const known = state.info.pictures.find((picture) => picture.id === id);
            const picture = known ?? { id, name: file.name, question: null };
            if (!known) {
                state.info.pictures.push(picture);
            }
            await open(picture);
        }
    } catch (error) {
        if (!signal.aborted) {
            say(element("status"), "");
            report(error);
        }
    }
}

/** The picture, the view and the question of the address; null where it has no picture. */
function addressed() {
    const values = new URLSearchParams(location.hash.slice(1));
    const id = values.get("picture");
    if (!id) {
        return null;
    }
    const number = (name, low, high, otherwise) => {
        const value = Number.parseFloat(values.get(name) ?? "");
        return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise;
    };
    const view = { yaw: number("yaw", -360, 360, 0), pitch: number("pitch", -90, 90, 0), zoom: number("zoom", 0, 100, 15) };
    const picture = state.info.pictures.find((one) => one.id === id) ?? { id, name: id, question: null };
    return { picture, view, question: values.get("question") ?? "" };
}

/** Writes the address of what is shown, into the clipboard where the browser allows it. */
async function copyLink() {
    if (!state.picture) {
        return;
    }
    const { yaw, pitch, zoom } = sphere.view();
    const values = new URLSearchParams({
        picture: state.picture.id,
        yaw: yaw.toFixed(1),
        pitch: pitch.toFixed(1),
        zoom: zoom.toFixed(0),
    });
    const question = element("question").value.trim() || talk.turns.at(-1)?.question;
    if (question) {
        values.set("question", question);
    }
    history.replaceState(null, "", `#${values}`);
    element("address").value = location.href;
    try {
        await navigator.clipboard.writeText(location.href);
        element("link-row").hidden = true;
        say(element("status"), "link.copied");
    } catch {
        element("link-row").hidden = false;
        element("address").select();
        say(element("status"), "link.by_hand");
    }
}

async function openAddress() {
    const found = addressed();
    if (found) {
        element("question").value = found.question;
        await open(found.picture, found.view);
    }
    const [first] = state.info.pictures;
    if (!state.picture && first) {
        await open(first);
    }
}

function fill() {
    const { models, pictures } = state.info;
    const [first, second] = models.map((model) => model.name);
    say(element("models"), second ? "models.two" : "models.one", { first: first ?? "", second });
    element("picture").replaceChildren(...pictures.map(({ id, name }) => new Option(name, id)));
    element("model").replaceChildren(...models.map(({ id, name }) => new Option(name, id)));
    element("model-row").hidden = models.length < 2;
    state.model = models[0]?.id ?? null;
}

function listen() {
    const frame = element("frame");
    element("picture").addEventListener("change", ({ target }) => {
        forget();
        const id = target.value;
        open(state.info.pictures.find((picture) => picture.id === id) ?? { id, name: target.selectedOptions[0].text });
    });
    element("file").addEventListener("change", ({ target }) => {
        const [file] = target.files;
        target.value = "";
        if (file) {
            send(file);
        }
    });
    for (const name of ["dragenter", "dragover"]) {
        frame.addEventListener(name, (event) => {
            event.preventDefault();
            frame.classList.add("dragged");
        });
    }
    frame.addEventListener("dragleave", (event) => {
        if (!frame.contains(event.relatedTarget)) {
            frame.classList.remove("dragged");
        }
    });
    frame.addEventListener("drop", (event) => {
        event.preventDefault();
        frame.classList.remove("dragged");
        const [file] = event.dataTransfer.files;
        if (file) {
            send(file);
        }
    });
    // A file that is dropped beside the viewer would replace the page.
    for (const name of ["dragover", "drop"]) {
        addEventListener(name, (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
    }
    element("model").addEventListener("change", ({ target }) => {
        state.model = target.value;
        layers.modelChanged();
    });
    element("zoom-in").addEventListener("click", () => sphere.zoom(10));
    element("zoom-out").addEventListener("click", () => sphere.zoom(-10));
    element("full").hidden = !document.fullscreenEnabled;
    element("full").addEventListener("click", () => (document.fullscreenElement ? document.exitFullscreen() : frame.requestFullscreen()));
    element("link").addEventListener("click", copyLink);
    element("close-problem").addEventListener("click", forget);
    element("key-form").addEventListener("submit", (event) => {
        event.preventDefault();
        api.useKey(element("key").value.trim());
        element("key").value = "";
        element("key-form").hidden = true;
        forget();
        (state.info.models.length === 0 ? begin : (wanted ?? openAddress))().catch(report);
    });
    addEventListener("hashchange", () => {
        forget();
        openAddress();
    });
    sphere.onMove(({ yaw, pitch, zoom }) => {
        // Without a sign for zero.
        const rounded = (value) => (Math.round(value * 10) / 10 || 0).toFixed(1);
        say(element("where"), "viewer.where", { yaw: rounded(yaw), pitch: rounded(pitch), zoom: Math.round(zoom) });
    });
}

function languages() {
    for (const button of document.querySelectorAll("[data-language]")) {
        button.addEventListener("click", () => useLanguage(button.dataset.language));
    }
}

async function start() {
    languages();
    try {
        await loadTexts();
    } catch {
        element("incomplete").hidden = false;
        return;
    }
    if (!document.createElement("canvas").getContext("webgl2")) {
        throw new api.Failure("error.viewer");
    }
    sphere = new Sphere(element("sphere"));
    talk = new Talk(state, () => layers.answersChanged(), report);
    layers = new Layers(sphere, state, () => talk.lastAnswer(state.model), report);
    window.panollava = { viewer: sphere.viewer, markers: sphere.markers, overlays: sphere.overlays, state };
    listen();
    await begin();
}

/** Shows what the server offers; without a key that it needs, it offers nothing. */
async function begin() {
    state.info = await api.info();
    fill();
    if (state.info.key_needed && state.info.models.length === 0) {
        element("key-form").hidden = false;
        if (api.hasKey()) {
            report(new api.Failure("error.key", {}, 401));
        }
        return;
    }
    if (state.info.pictures.length === 0) {
        say(element("status"), "picture.none");
    }
    await openAddress();
}

start().catch(report);
