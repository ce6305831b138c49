// What is drawn over the picture for one model: borders, boxes, masks, and one of two heat maps.

import * as api from "./api.js";
import { say } from "./texts.js";

const TONES = 6;
const element = (id) => document.getElementById(id);

/** A number for reading: as the server wrote it, shorter where it is long. */
const short = (value) => (value.length > 6 ? Number(value).toPrecision(3) : value);

export class Layers {
    #running = new Map(); // kind -> AbortController of its newest request
    #direction = null; // what the map of resemblance compares with

    /**
     * @param {import("./sphere.js").Sphere} sphere
     * @param {object} state `picture` and `model`, which later requests use
     * @param {() => object | null} lastAnswer the body of a request for the attention of the last answer
     * @param {(error: Error) => void} report shows an error
     */
    constructor(sphere, state, lastAnswer, report) {
        this.sphere = sphere;
        this.state = state;
        this.lastAnswer = lastAnswer;
        this.report = report;
        this.switches = { views: element("show-views"), boxes: element("show-boxes"), mask: element("show-mask") };
        for (const [kind, box] of Object.entries(this.switches)) {
            box.addEventListener("change", () => this.refresh(kind));
        }
        for (const radio of document.querySelectorAll("input[name=heat]")) {
            radio.addEventListener("change", () => this.refresh("heat"));
        }
        element("opacity").addEventListener("input", () => sphere.opacity("heat", this.opacity()));
        element("similar-centre").addEventListener("click", () => this.resembles(sphere.view()));
        sphere.onClick((direction) => this.heat() === "similar" && this.resembles(direction));
    }

    heat() {
        return document.querySelector("input[name=heat]:checked").value;
    }

    opacity() {
        return Number(element("opacity").value) / 100;
    }

    /** After another picture: nothing of the last one stays, and all that is switched on is asked for again. */
    pictureChanged() {
        this.#direction = null;
        this.modelChanged();
    }

    /** After another model: the same. The direction that is compared stays. */
    modelChanged() {
        const model = this.state.info.models.find(({ id }) => id === this.state.model);
        element("summary").textContent = model?.summary ?? "";
        for (const kind of ["boxes", "mask"]) {
            this.switches[kind].disabled = !model?.detects;
            this.switches[kind].checked &&= Boolean(model?.detects);
        }
        const attention = document.querySelector("input[name=heat][value=attention]");
        attention.disabled = !model?.explains;
        if (attention.disabled && attention.checked) {
            this.#choose("none");
        }
        for (const kind of ["views", "boxes", "mask", "heat"]) {
            this.refresh(kind);
        }
    }

    /** After an answer or the end of a conversation. */
    answersChanged() {
        if (this.heat() === "attention") {
            this.refresh("heat");
        }
    }

    /** Stops all requests: their results would be of another picture. */
    stop() {
        for (const controller of this.#running.values()) {
            controller.abort();
        }
    }

    /** Brings one kind in line with its switch. What an earlier request still brings is not shown. */
    async refresh(kind) {
        this.#running.get(kind)?.abort();
        const controller = new AbortController();
        this.#running.set(kind, controller);
        const { signal } = controller;
        this.#clear(kind);
        if (!this.state.picture || !this.state.model || (kind !== "heat" && !this.switches[kind].checked)) {
            return;
        }
        try {
            await this[`_${kind}`](signal, this.state.picture.id, this.state.model);
        } catch (error) {
            if (signal.aborted) {
                return;
            }
            this.#clear(kind);
            if (kind === "heat") {
                this.#choose(this.heat() === "attention" ? "none" : "similar");
            } else {
                this.switches[kind].checked = false;
            }
            this.report(error);
        }
    }

    /** Compares all places with one direction. */
    resembles({ yaw, pitch }) {
        this.#direction = { yaw, pitch };
        this.refresh("heat");
    }

    async _views(signal, picture, model) {
        const { views } = await api.views(picture, model, signal);
        if (signal.aborted) {
            return;
        }
        const shapes = views.flatMap(({ number, yaw, pitch, border }, index) =>
            border.map((curve, part) => ({
                curve,
                at: { yaw, pitch },
                label: part === 0 ? String(number) : "",
                tone: index % TONES,
            })),
        );
        this.sphere.draw("views", shapes);
        const whole = views.filter((view) => view.whole).length;
        say(element("views-note"), whole ? "views.whole" : "views.count", { count: views.length - whole, whole });
    }

    async _boxes(signal, picture, model) {
        element("boxes-row").hidden = false;
        say(element("boxes-note"), "boxes.loading");
        const { boxes } = await api.boxes(picture, model, signal);
        if (signal.aborted) {
            return;
        }
        const tones = new Map();
        const sorted = [...boxes].sort((one, other) => other.score - one.score);
        const shapes = sorted.map((box) => {
            const tone = tones.get(box.name) ?? tones.size % TONES;
            tones.set(box.name, tone);
            return { curve: box.outline, at: { yaw: box.yaw, pitch: box.pitch + box.height / 2 }, label: box.name, tone };
        });
        this.sphere.draw("boxes", shapes);
        element("boxes").replaceChildren(...sorted.map((box, index) => this.#boxButton(box, shapes[index].tone)));
        say(element("boxes-note"), boxes.length ? "boxes.count" : "boxes.none", { count: boxes.length });
    }

    #boxButton(box, tone) {
        const item = document.createElement("li");
        const button = document.createElement("button");
        const [name, score, where] = ["span", "span", "span"].map((tag) => document.createElement(tag));
        button.type = "button";
        button.className = `tone-${tone}`;
        name.className = "name";
        name.textContent = box.name;
        score.textContent = `${Math.round(box.score * 100)} %`;
        where.className = "quiet";
        say(where, "boxes.where", { yaw: Math.round(box.yaw), pitch: Math.round(box.pitch) });
        button.append(name, " ", score, " ", where);
        button.addEventListener("click", () => this.sphere.turn(box));
        item.append(button);
        return item;
    }

    async _mask(signal, picture, model) {
        const blob = await api.mask(picture, model, signal);
        if (!signal.aborted) {
            await this.sphere.cover("mask", blob, { signal, zIndex: 1 });
        }
    }

    async _heat(signal, picture, model) {
        const note = element("heat-note");
        const kind = this.heat();
        element("heat-row").hidden = kind === "none";
        element("similar-centre").hidden = element("cross").hidden = kind !== "similar";
        const body = kind === "attention" ? this.lastAnswer() : null;
        if (kind === "none") {
            return;
        }
        if (kind === "attention" ? !body : !this.#direction) {
            say(note, kind === "attention" ? "heat.no_answer" : "heat.click");
            return;
        }
        say(note, "heat.loading");
        const direction = this.#direction;
        const map =
            kind === "attention"
                ? await api.attention(body, signal)
                : await api.similar(picture, { model, yaw: direction.yaw.toFixed(2), pitch: direction.pitch.toFixed(2) }, signal);
        if (signal.aborted) {
            return;
        }
        await this.sphere.cover("heat", map.blob, { opacity: this.opacity(), signal });
        if (signal.aborted) {
            return;
        }
        this.sphere.opacity("heat", this.opacity());
        const range = { low: short(map.low), high: short(map.high) };
        if (kind === "attention") {
            say(note, "heat.attention_range", range);
        } else {
            this.sphere.point("heat", direction);
            const at = { yaw: Math.round(direction.yaw), pitch: Math.round(direction.pitch) };
            say(note, "heat.similar_range", { ...range, ...at });
        }
    }

    #choose(heat) {
        document.querySelector(`input[name=heat][value=${heat}]`).checked = true;
        element("heat-row").hidden = heat === "none";
    }

    #clear(kind) {
        this.sphere.erase(kind);
        this.sphere.uncover(kind);
        if (kind === "boxes") {
            element("boxes-row").hidden = true;
            element("boxes").replaceChildren();
        }
        if (kind === "heat" || kind === "views") {
            say(element(`${kind}-note`), "");
        }
    }
}
