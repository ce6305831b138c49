// The texts of the page in two languages. An element remembers its text by name, so that a switch rewrites it.

const STORED = "panollava.language";
const values = new WeakMap();
let texts = {};
let language = "en";

/** Loads texts.json and chooses the language: the stored one, or the browser's. */
export async function loadTexts() {
    texts = await (await fetch(new URL("texts.json", import.meta.url))).json();
    const known = Object.keys(texts);
    const stored = remembered();
    const wanted = (navigator.language ?? "en").toLowerCase().split("-")[0];
    chooseLanguage(known.includes(stored) ? stored : known.includes(wanted) ? wanted : "en");
}

/** A text by name, with `{name}` filled in. */
export function text(key, filled = {}) {
    const found = texts[language]?.[key] ?? key;
    return found.replace(/\{(\w+)\}/g, (whole, name) => (name in filled ? String(filled[name]) : whole));
}

/** Writes a text into an element. An empty key empties it. */
export function say(element, key, filled = {}) {
    if (!key) {
        delete element.dataset.text;
        element.textContent = "";
        return;
    }
    element.dataset.text = key;
    values.set(element, filled);
    element.textContent = text(key, filled);
}

/** Switches all texts to a language and remembers it. */
export function useLanguage(name) {
    chooseLanguage(name);
    try {
        localStorage.setItem(STORED, name);
    } catch {
        // Where the browser stores nothing, the choice lasts as long as the page.
    }
}

function remembered() {
    try {
        return localStorage.getItem(STORED);
    } catch {
        return null;
    }
}

function chooseLanguage(name) {
    language = name;
    document.documentElement.lang = name;
    for (const element of document.querySelectorAll("[data-text]")) {
        element.textContent = text(element.dataset.text, values.get(element));
    }
    for (const element of document.querySelectorAll("[data-label]")) {
        element.setAttribute("aria-label", text(element.dataset.label));
    }
    for (const button of document.querySelectorAll("[data-language]")) {
        button.setAttribute("aria-pressed", String(button.dataset.language === name));
    }
}
