"""The server of ``python -m panollava.serve``: a queue of questions, the OpenAI form, and a page."""
