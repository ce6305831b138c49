// Bundles the libraries of the page, with their licences, versions and hashes.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = resolve(process.argv[2] ?? join(here, "../../panollava/server/static/vendor"));
const bundled = [
    "@photo-sphere-viewer/core",
    "@photo-sphere-viewer/markers-plugin",
    "@photo-sphere-viewer/overlays-plugin",
    "three",
];

mkdirSync(out, { recursive: true });
const { metafile } = await build({
    absWorkingDir: here,
    entryPoints: ["viewer.js"],
    outdir: out,
    bundle: true,
    format: "esm",
    target: "es2022",
    minify: true,
    charset: "utf8",
    legalComments: "none", // LICENSES.txt has the whole texts
    metafile: true,
});

// Each file that is in the bundle belongs to one of the packages whose licences are copied.
for (const file of Object.keys(metafile.inputs)) {
    if (file !== "viewer.js" && !bundled.some((name) => file.includes(`node_modules/${name}/`))) {
        throw new Error(`${file} is in the bundle, but its package is not in the list of this script`);
    }
}

const packages = {};
let licences = "The files viewer.js and viewer.css contain these packages.\n";
for (const name of bundled) {
    const folder = join(here, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    packages[name] = version;
    const text = readFileSync(join(folder, "LICENSE"), "utf8").replaceAll("\r\n", "\n").trim();
    licences += `\n${"-".repeat(80)}\n${name} ${version} (${license})\n${"-".repeat(80)}\n\n${text}\n`;
}
writeFileSync(join(out, "LICENSES.txt"), licences);

const sha256 = {};
for (const name of ["viewer.js", "viewer.css"]) {
    sha256[name] = createHash("sha256").update(readFileSync(join(out, name))).digest("hex");
}
writeFileSync(join(out, "versions.json"), `${JSON.stringify({ packages, sha256 }, null, 4)}\n`);
