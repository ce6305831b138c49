// The conversation about a picture: turns with an answer of each model, which arrive in pieces.

import * as api from "./api.js";
import { say } from "./texts.js";

const element = (id) => document.getElementById(id);

export class Talk {
    #turns = new Map(); // id of a picture -> its turns
    #asking = null;

    /**
     * @param {object} state `picture` and `info`
     * @param {() => void} changed is called before and after an answer, and after a reset
     * @param {(error: Error) => void} report shows an error
     */
    constructor(state, changed, report) {
        this.state = state;
        this.changed = changed;
        this.report = report;
        const question = element("question");
        element("ask-form").addEventListener("submit", (event) => {
            event.preventDefault();
            this.ask();
        });
        question.addEventListener("keydown", (event) => {
            // A syllable that is still being composed also ends with Enter.
            if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
                event.preventDefault();
                this.ask();
            }
        });
        element("stop").addEventListener("click", () => this.stop());
        element("reset").addEventListener("click", () => this.reset());
        element("download").addEventListener("click", () => this.download());
        element("example").addEventListener("click", () => {
            question.value = this.state.picture?.question ?? "";
            question.focus();
        });
    }

    /** The turns about the picture that is open. */
    get turns() {
        return this.#turns.get(this.state.picture?.id) ?? [];
    }

    /** After another picture: its own turns, and its example of a question. */
    pictureChanged() {
        this.#draw();
        const question = this.state.picture?.question;
        element("example-row").hidden = !question;
        say(element("example"), question ? "talk.example" : "", { question });
    }

    stop() {
        this.#asking?.abort();
    }

    reset() {
        this.stop();
        this.#turns.delete(this.state.picture?.id);
        this.#draw();
        this.changed();
    }

    /** Earlier questions and answers of a model, before a turn. */
    history(model, before = this.turns.length) {
        const earlier = this.turns.slice(0, before);
        return earlier.flatMap(({ question, answers }) => {
            const answer = answers.find((one) => one.model === model);
            return answer?.answer && !answer.error ? [[question, answer.answer]] : [];
        });
    }

    /** What the attention of a model's last answer is asked with; null where there is no whole answer. */
    lastAnswer(model) {
        const at = this.turns.length - 1;
        const answer = this.turns[at]?.answers.find((one) => one.model === model);
        if (!answer?.answer || !answer.finish_reason) {
            return null;
        }
        const { question } = this.turns[at];
        const picture = this.state.picture.id;
        return { model, picture, question, answer: answer.answer, history: this.history(model, at) };
    }

    /** Asks all models the question in the field. */
    async ask() {
        const field = element("question");
        const question = field.value.trim();
        if (!question || !this.state.picture || this.#asking) {
            return;
        }
        const picture = this.state.picture.id;
        const asking = (this.#asking = new AbortController());
        const requests = this.state.info.models.map(({ id }) => ({
            answer: { model: id, answer: "", finish_reason: null, tokens: null },
            body: { model: id, picture, question, history: this.history(id), max_tokens: null },
        }));
        const turn = { question, answers: requests.map((one) => one.answer) };
        this.#turns.set(picture, [...this.turns, turn]);
        field.value = "";
        this.#draw();
        this.#busy(true);
        this.changed();
        await Promise.all(requests.map(({ answer, body }) => this.#answer(turn, answer, body, asking.signal)));
        this.#asking = null;
        this.#busy(false);
        if (picture === this.state.picture?.id) {
            this.changed();
        }
    }

    async #answer(turn, answer, body, signal) {
        const shown = () => this.#show(turn, answer);
        try {
            const end = await api.ask(body, signal, (piece) => {
                if (!signal.aborted) {
                    answer.answer += piece;
                    shown();
                }
            });
            if (signal.aborted) {
                throw new DOMException("stopped", "AbortError");
            }
            answer.answer = end.answer;
            answer.finish_reason = end.finish_reason;
            answer.tokens = end.tokens;
        } catch (error) {
            if (signal.aborted) {
                answer.stopped = true;
            } else {
                answer.error = error.message;
                answer.failure = error;
                this.report(error);
            }
        }
        shown();
    }

    /** Writes the conversation into a file. */
    download() {
        const { info, picture } = this.state;
        const turns = this.turns.map(({ question, answers }) => ({
            question,
            answers: answers.map(({ failure, ...answer }) => answer),
        }));
        const models = info.models.map(({ id, name, summary }) => ({ id, name, summary }));
        const { id, name } = picture;
        const content = { panollava: info.version, picture: { id, name }, models, turns };
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
        link.download = `conversation-${id}.json`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }

    #busy(on) {
        element("ask").disabled = on;
        element("stop").disabled = !on;
        element("turns").setAttribute("aria-busy", String(on));
        if (on) {
            document.documentElement.dataset.busy = "true";
        } else {
            delete document.documentElement.dataset.busy;
        }
        this.#buttons();
    }

    #buttons() {
        const none = this.turns.length === 0;
        element("reset").disabled = none;
        element("download").disabled = none || this.#asking !== null;
        element("no-turns").hidden = !none;
    }

    #draw() {
        const list = element("turns");
        list.replaceChildren(element("no-turns"), ...this.turns.map((turn) => this.#article(turn)));
        list.scrollTop = list.scrollHeight;
        for (const turn of this.turns) {
            turn.answers.forEach((answer) => this.#show(turn, answer));
        }
        this.#buttons();
    }

    #article(turn) {
        const article = document.createElement("article");
        const question = document.createElement("h3");
        const answers = document.createElement("div");
        say(question, "talk.asked", { question: turn.question });
        answers.className = turn.answers.length > 1 ? "answers two" : "answers";
        turn.parts = new Map();
        for (const answer of turn.answers) {
            const part = document.createElement("div");
            const [name, words, end] = ["h4", "p", "p"].map((tag) => document.createElement(tag));
            part.className = "answer";
            part.dataset.model = answer.model;
            name.textContent = this.state.info.models.find(({ id }) => id === answer.model)?.name ?? answer.model;
            name.hidden = turn.answers.length === 1;
            words.className = "words";
            end.className = "quiet";
            part.append(name, words, end);
            answers.append(part);
            turn.parts.set(answer.model, { words, end });
        }
        article.append(question, answers);
        return article;
    }

    #show(turn, answer) {
        const { words, end } = turn.parts.get(answer.model);
        say(words, "");
        words.textContent = answer.answer;
        words.hidden = !answer.answer;
        if (answer.failure) {
            say(end, answer.failure.text ?? "error.server", answer.failure.values ?? { message: answer.failure.message });
        } else if (answer.stopped) {
            say(end, answer.answer ? "talk.stopped" : "talk.stopped_empty");
        } else if (!answer.finish_reason) {
            say(end, answer.answer ? "" : "talk.waiting");
        } else if (!answer.answer) {
            say(end, "talk.empty_answer");
        } else {
            say(end, answer.finish_reason === "length" ? "talk.length" : "talk.tokens", { tokens: answer.tokens ?? "?" });
        }
        const list = element("turns");
        list.scrollTop = list.scrollHeight;
    }
}
