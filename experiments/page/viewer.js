// What the page takes from its libraries: build.mjs bundles this file into one module.
import "@photo-sphere-viewer/core/index.css";
import "@photo-sphere-viewer/markers-plugin/index.css";

export { Cache, EquirectangularAdapter, Viewer, events } from "@photo-sphere-viewer/core";
export { MarkersPlugin } from "@photo-sphere-viewer/markers-plugin";
export { OverlaysPlugin } from "@photo-sphere-viewer/overlays-plugin";
