"""The wording of the knowledge domain: how a model is asked for a self-edit, and how it is questioned."""

from __future__ import annotations

WRITE = {
    "implications": (
        "Read the passage and list what follows from it, directly or indirectly.\n\n"
        "Title: {title}\nPassage: {context}\n\nImplications:\n"
    ),
    "implications-long": (
        "Read the passage and write a long list of what follows from it, directly or indirectly.\n\n"
        "Title: {title}\nPassage: {context}\n\nImplications:\n"
    ),
    "implications-very-long": (
        "Read the passage and write a very long list of all that follows from it, directly or indirectly, "
        "leaving nothing out.\n\n"
        "Title: {title}\nPassage: {context}\n\nImplications:\n"
    ),
    "rewrite": (
        "Read the passage and say it again several times, each time in different words.\n\n"
        "Title: {title}\nPassage: {context}\n\nIn other words:\n"
    ),
    "self-qa": (
        "Read the passage and write questions about it, each with its answer.\n\n"
        "Title: {title}\nPassage: {context}\n\nQuestions and answers:\n"
    ),
    "none": "{title}\n{context}\n",
}
"""The prompt variants of the paper, by name, in words of our own."""

ASK = "Answer the question in a few words.\nTopic: {title}\nQuestion: {question}\nAnswer:"
"""The closed-book question: the title, never the passage."""

ASK_OPEN = (
    "Answer the question in a few words.\nTopic: {title}\nPassage: {context}\nQuestion: {question}\nAnswer:"
)
"""The same question with the passage in view: what the model can do by reading."""

QUIZ = (
    "Read the passage and write questions about it that can be answered in a few words, each with its "
    "answer, "
    'as lines of the form "Question: … Answer: …".\n\n'
    "Title: {title}\nPassage: {context}\n"
)
"""How a model is asked to draft a quiz; every question must name what it is about, so that it can be asked
without the passage."""

ASK_FREE = "Answer the question in a few words.\nQuestion: {question}\nAnswer:"
"""A question whose topic nobody has named."""
