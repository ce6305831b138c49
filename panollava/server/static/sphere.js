// The panorama that can be rotated, with curves and pictures over it. Angles are degrees here and radians in the viewer.

import { Cache, EquirectangularAdapter, MarkersPlugin, OverlaysPlugin, Viewer, events } from "./vendor/viewer.js";

const DEGREE = Math.PI / 180;
const STEP = 10;
const STEPS = {
    ArrowLeft: { yaw: -STEP },
    ArrowRight: { yaw: STEP },
    ArrowUp: { pitch: STEP },
    ArrowDown: { pitch: -STEP },
    "+": { zoom: STEP },
    "=": { zoom: STEP },
    "-": { zoom: -STEP },
    _: { zoom: -STEP },
};

/** The same angle above -180 and up to 180. */
const around = (yaw) => 180 - ((((180 - yaw) % 360) + 360) % 360);

const inRadians = (curve) => curve.map(([yaw, pitch]) => [yaw * DEGREE, pitch * DEGREE]);

export class Sphere {
    #serial = 0;
    #shown = new Map(); // kind of overlay -> its id in the plugin

    /** @param {HTMLElement} container the element that is filled and that takes the keys */
    constructor(container) {
        this.viewer = new Viewer({
            container,
            adapter: EquirectangularAdapter.withConfig({ shader: true, useXmpData: false }),
            plugins: [MarkersPlugin.withConfig({ clickEventOnMarker: true }), OverlaysPlugin],
            navbar: false,
            keyboard: false,
            minFov: 20,
            maxFov: 100,
            defaultZoomLvl: 15,
            loadingTxt: " ",
            lang: { loadError: "" }, // The page says it in its own language.
            // Tests read pixels of the canvas.
            rendererParameters: { alpha: true, antialias: true, preserveDrawingBuffer: true },
        });
        this.markers = this.viewer.getPlugin(MarkersPlugin);
        this.overlays = this.viewer.getPlugin(OverlaysPlugin);
        container.addEventListener("keydown", (event) => this.#key(event));
    }

    /** Calls back with `{yaw, pitch, zoom}` after each movement. */
    onMove(callback) {
        for (const { type } of [events.PositionUpdatedEvent, events.ZoomUpdatedEvent, events.ReadyEvent]) {
            this.viewer.addEventListener(type, () => callback(this.view()));
        }
    }

    /** Calls back with `{yaw, pitch}` of each click. */
    onClick(callback) {
        this.viewer.addEventListener(events.ClickEvent.type, ({ data }) => {
            if (!data.rightclick) {
                callback({ yaw: around(data.yaw / DEGREE), pitch: data.pitch / DEGREE });
            }
        });
    }

    view() {
        const { yaw, pitch } = this.viewer.getPosition();
        return { yaw: around(yaw / DEGREE), pitch: pitch / DEGREE, zoom: this.viewer.getZoomLevel() };
    }

    /** Turns to a direction: with a short movement, or at once where the system asks for less motion. */
    turn({ yaw, pitch }) {
        const position = { yaw: yaw * DEGREE, pitch: pitch * DEGREE };
        if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
            this.viewer.rotate(position);
        } else {
            this.viewer.animate({ ...position, speed: 400 });
        }
    }

    zoom(step) {
        this.viewer.zoom(Math.min(100, Math.max(0, this.viewer.getZoomLevel() + step)));
    }

    /**
     * Shows another panorama; curves and overlays of the last one are removed.
     *
     * @returns false where a later call took its place
     */
    async open(blob, { yaw = 0, pitch = 0, zoom = 15 } = {}) {
        this.markers.clearMarkers();
        this.#shown.clear();
        const options = { position: { yaw: yaw * DEGREE, pitch: pitch * DEGREE }, zoom, transition: false, showLoader: false };
        return this.#withBlob(blob, (name) => this.viewer.setPanorama(name, options));
    }

    /** Resolves when the next picture is on the screen. */
    rendered() {
        return new Promise((resolve) => {
            this.viewer.addEventListener(events.RenderEvent.type, resolve, { once: true });
            this.viewer.needsUpdate();
        });
    }

    /** Replaces the curves and labels of a kind, such as "boxes". */
    draw(kind, shapes) {
        this.erase(kind);
        shapes.forEach(({ curve, at, label, tone }, index) => {
            if (curve?.length > 2) {
                const shape = { polygon: inRadians(curve), svgStyle: { fill: "none" } };
                // A dark line below the coloured one is seen on bright ground.
                this.markers.addMarker({ ...shape, id: `${kind}:${index}:below`, className: `curve below-${kind}` });
                this.markers.addMarker({ ...shape, id: `${kind}:${index}`, className: `curve line-${kind} tone-${tone}` });
            }
            if (label) {
                const element = document.createElement("span");
                element.textContent = label;
                element.setAttribute("aria-hidden", "true");
                const position = { yaw: at.yaw * DEGREE, pitch: at.pitch * DEGREE };
                const className = `label tone-${tone}`;
                this.markers.addMarker({ id: `${kind}:${index}:label`, element, position, anchor: "bottom center", className });
            }
        });
    }

    /** Marks one direction with a ring. */
    point(kind, { yaw, pitch }) {
        this.erase(kind);
        const position = { yaw: yaw * DEGREE, pitch: pitch * DEGREE };
        this.markers.addMarker({ id: `${kind}:0`, circle: 8, position, className: "point" });
    }

    erase(kind) {
        const ids = this.markers.getMarkers().map((marker) => marker.id);
        this.markers.removeMarkers(ids.filter((id) => id.startsWith(`${kind}:`)));
    }

    /** Lays a picture with transparency over the panorama, in place of the last one of its kind. */
    async cover(kind, blob, { opacity = 1, zIndex = 0, signal }) {
        const id = `${kind}:${++this.#serial}`;
        // The public addOverlay returns before the picture is read. The version of the library is fixed in vendor/.
        await this.#withBlob(blob, (path) => this.overlays.__addSphereImageOverlay({ id, path, opacity, zIndex }));
        if (signal.aborted) {
            this.overlays.removeOverlay(id);
            return;
        }
        this.uncover(kind);
        this.#shown.set(kind, id);
    }

    uncover(kind) {
        const id = this.#shown.get(kind);
        this.#shown.delete(kind);
        if (id && this.overlays.state.overlays[id]) {
            this.overlays.removeOverlay(id);
        }
    }

    opacity(kind, value) {
        const found = this.overlays.state.overlays[this.#shown.get(kind)];
        if (found) {
            this.viewer.adapter.setTextureOpacity(found.mesh, value);
            this.viewer.needsUpdate();
        }
    }

    /** The viewer finds the bytes in its cache under a name: its own download would lack the key. */
    async #withBlob(blob, use) {
        const name = `blob-${++this.#serial}`;
        Cache.add(name, name, blob);
        try {
            return await use(name);
        } finally {
            Cache.remove(name, name);
        }
    }

    #key(event) {
        const step = STEPS[event.key];
        if (!step || event.ctrlKey || event.altKey || event.metaKey || !this.viewer.state.ready) {
            return;
        }
        event.preventDefault();
        if (step.zoom) {
            this.zoom(step.zoom);
            return;
        }
        const { yaw, pitch } = this.view();
        const up = Math.min(90, Math.max(-90, pitch + (step.pitch ?? 0)));
        this.viewer.stopAnimation();
        this.viewer.rotate({ yaw: (yaw + (step.yaw ?? 0)) * DEGREE, pitch: up * DEGREE });
    }
}
