"""The dashboard's pages. Everything a model wrote goes through the templates' escaping; names from the
address stay below the folder of runs."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from seal.records import NO_RL, Json, LoraError, SealError, seal_round, settings_of
from seal.report.compare import differing, same_tasks
from seal.report.memory import summarise
from seal.stats import Interval, difference
from seal.ui import charts
from seal.ui.data import AttemptsFile, Folder, Run, means_of, round_of
from seal.ui.teach import Classroom, Refused

PAGE = 50
"""Rows of a list on one page."""
POLICY = "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
MOST_ROUNDS = 10_000
"""A run's own figures are not trusted either."""
UNTRAINED = f"eval/{NO_RL.key}"
LOCAL = ["127.0.0.1", "localhost", "[::1]"]


def make_app(root: Path, hosts: list[str] | None = None) -> Starlette:
    """The app over a folder of runs.

    Args:
        hosts: names by which it may be called; others are refused, so that no page elsewhere can read it
            through the browser.
    """
    pages = Pages(root)
    routes = [
        Route("/", pages.runs),
        Route("/run", pages.run),
        Route("/stage", pages.stage),
        Route("/task", pages.task),
        Route("/words", pages.words),
        Route("/continual", pages.continual),
        Route("/compare", pages.compare),
        Route("/teach", pages.teach, methods=["GET", "POST"]),
        Route("/taught", pages.taught, methods=["GET", "POST"]),
        Mount("/static", StaticFiles(packages=[("seal.ui", "static")])),
    ]
    app = Starlette(
        routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts or LOCAL)]
    )
    app.add_exception_handler(LoraError, pages.sorry)  # SealError is one
    app.add_exception_handler(Exception, pages.broken)
    return app


class Pages:
    """A method per page. Those that compute are plain functions, which Starlette runs in threads: a slow page
    holds up no other."""

    def __init__(self, root: Path) -> None:
        self.folder = Folder(root)
        self.classroom = Classroom(self.folder.root)
        self.templates = Environment(
            loader=PackageLoader("seal.ui"), autoescape=select_autoescape(default=True), trim_blocks=True
        )
        self.templates.filters["urlencode"] = lambda v: quote(str(v).encode("utf-8", "surrogateescape"))
        self.templates.filters |= {"share": _share, "duration": _duration, "spread": _spread}
        self.templates.globals |= {"charts": charts}

    def show(self, template: str, status: int = 200, **values: Any) -> Response:
        text = self.templates.get_template(template).render(root=self.folder.root, **values)
        return HTMLResponse(
            text.encode("utf-8", "replace"),  # a file's name may be no text
            status,
            headers={
                "Content-Security-Policy": POLICY,
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-store",
            },
        )

    async def sorry(self, request: Request, error: Exception) -> Response:
        return self.show("sorry.html", 403 if isinstance(error, Refused) else 404, message=str(error))

    async def broken(self, request: Request, error: Exception) -> Response:
        return self.show(
            "sorry.html",
            500,
            message=f"This page met a fault ({type(error).__name__}): the run's files may be damaged.",
        )

    def runs(self, request: Request) -> Response:
        query = request.query_params.get("q", "")
        found = [r for r in self.folder.runs() if query.casefold() in r.name.casefold()]
        page, places = _paged(request, len(found))
        return self.show(
            "runs.html", runs=[found[i] for i in places], total=len(found), q=query, page=page, live=True
        )

    def run(self, request: Request) -> Response:
        run = self._run(request)
        if run.kind == "taught":
            return self.show(
                "taught.html",
                **self.classroom.state(run.path, run.name),
                run=run,
                live=run.status == "running",
            )
        if run.kind == "continual":
            return self.continual(request)
        stages = [run.summary(s) for s in run.stages()] if not run.problem else []
        rounds = [s for s in stages if round_of(s["stage"]) is not None and s["reward"]]
        number = {s["stage"]: round_of(s["stage"]) or 0 for s in rounds}
        curves = {
            "reward": charts.lines(
                {
                    "all edits tried, 95 % interval": [(number[s["stage"]], s["reward"]) for s in rounds],
                    "best of siblings (flattered by luck)": [(number[s["stage"]], s["best"]) for s in rounds],
                    "accuracy, unadapted": [(number[s["stage"]], s["before"]) for s in rounds],
                },
                f"mean reward by round ({run.reward})",
                "round",
            ),
            "edits": charts.lines(
                {
                    "likeness of siblings": [
                        (number[s["stage"]], s["likeness"]) for s in rounds if s["likeness"] is not None
                    ],
                    "bad edits": [(number[s["stage"]], s["bad"]) for s in rounds],
                    "silent answers": [(number[s["stage"]], s["silent"]) for s in rounds],
                },
                "shares by round",
                "round",
            ),
            "time": charts.lines(
                {"seconds per attempt": [(number[s["stage"]], s["seconds"]) for s in rounds]},
                "time per attempt",
                "round",
                None,
            ),
        }
        results = run.file("results.json") or {}
        groups = tuple(results.get("groups") or ()) or None
        writers = [
            (s["setting"], means_of(tuple(s["scores"]), groups), s) for s in results.get("settings", ())
        ]
        n_rounds = min(MOST_ROUNDS, int(results.get("rounds") or 0))
        known = settings_of(n_rounds)
        rounds_of = {NO_RL.label: 0} | {seal_round(r).label: r for r in range(1, n_rounds + 1)}
        by_round = [(rounds_of[n], i) for n, i, _ in writers if n in rounds_of]
        curves["accuracy"] = charts.lines(
            {"SEAL (0: no RL)": by_round} if len(by_round) > 1 else {}, "held-out accuracy by round", "round"
        )
        kinds = {n: known[n].kind for n, _, _ in writers if n in known}
        table = charts.bars(
            [(n, i, kinds.get(n, "baseline")) for n, i, _ in writers], "accuracy on held-out tasks by writer"
        )
        live = run.status == "running"
        return self.show(
            "run.html",
            run=run,
            stages=stages,
            curves={k: Markup(v) for k, v in curves.items()},
            writers=writers,
            bars=Markup(table),
            live=live,
        )

    def stage(self, request: Request) -> Response:
        run, name = self._run(request), request.query_params.get("stage", "")
        file, query = run.attempts(name), request.query_params.get("q", "").casefold()
        tasks, titles = run.tasks(), {}
        for task in file.by_task:
            titles[task] = str(tasks[task].data.get("title", task)) if task in tasks else task
        found = [t for t in file.by_task if query in t.casefold() or query in titles[t].casefold()]
        rows = [_task_row(file, t, titles[t]) for t in found]
        key = request.query_params.get("sort", "")
        if key in ("best", "mean", "before", "spread", "title"):
            rows.sort(key=lambda r: (r[key] is None, r[key]) if key == "title" else -(r[key] or 0.0))
        page, places = _paged(request, len(rows))
        return self.show(
            "stage.html",
            run=run,
            stage=name,
            rows=[rows[i] for i in places],
            total=len(rows),
            q=query,
            sort=key,
            page=page,
            summary=run.summary(name),
            damaged=file.damaged,
            live=run.status == "running",
        )

    def task(self, request: Request) -> Response:
        run, name, task_id = (
            self._run(request),
            request.query_params.get("stage", ""),
            request.query_params.get("task", ""),
        )
        file = run.attempts(name)
        places = file.by_task.get(task_id)
        if places is None:
            raise SealError(f"the stage {name} of {run.name} has no attempt at the task {task_id!r}")
        ranked = sorted(
            places,
            key=lambda i: (
                file.briefs[i].reward is None,
                -(file.briefs[i].reward or 0.0),
                file.briefs[i].edit,
            ),
        )
        page, mine = _paged(request, len(ranked), 20)
        edits = file.rows([ranked[i] for i in mine])
        task, domain = run.tasks().get(task_id), run.domain
        before = _before(run, name, file, task_id)
        selected = [k for k in run.file(f"{name}/kept.json") or () if k.get("task") == task_id]
        kept = {
            k.get("edit", k.get("text")) for k in selected
        }  # by its number; an earlier version kept the text alone
        for edit in edits:
            given = (task.data.get("questions") if task else None) or [{}] * len(edit["scores"])
            edit["asked"] = _answers(edit, given, before)
            edit["kept"] = bool({edit["edit"], edit["text"]} & kept)
            edit["rows_made"] = _rows_made(domain, task, edit["text"])
            edit["picture"] = (
                Markup(domain.picture(task, edit["text"], before, edit["answers"])) if domain and task else ""
            )
        order = list(file.by_task)
        at = order.index(task_id)
        beside = {
            "previous": order[at - 1] if at else None,
            "next": order[at + 1] if at + 1 < len(order) else None,
        }
        return self.show(
            "task.html",
            run=run,
            stage=name,
            task_id=task_id,
            task=task,
            edits=edits,
            total=len(ranked),
            page=page,
            beside=beside,
            live=run.status == "running",
        )

    def words(self, request: Request) -> Response:
        """Two writers on the same task, word by word."""
        run = self._run(request)
        stages = [s for s in run.stages() if s.startswith("eval/") and (run.stage(s) / "texts.json").exists()]
        finals = [s for s in stages if s.startswith("eval/SEAL-round")]
        if not stages:
            raise SealError(f"the run {run.name} has no edits of held-out tasks yet")
        a = request.query_params.get("a") or (UNTRAINED if UNTRAINED in stages else stages[0])
        b = request.query_params.get("b") or (finals[-1] if finals else stages[-1])
        if unknown := next((s for s in (a, b) if s not in stages), None):
            raise SealError(f"the run {run.name} has no edits of held-out tasks in a stage {unknown!r}")
        order = [t.id for t in run.domain.tasks("eval")] if run.domain else list(run.attempts(b).by_task)
        texts = {s: run.file(f"{s}/texts.json") or [] for s in (a, b)}
        n = min(len(order), len(texts[a]), len(texts[b]))
        at = max(0, min(n - 1, _number(request.query_params.get("at"), 0)))
        if not n:
            raise SealError(f"{a} and {b} have no task in common")
        pair = [texts[s][at][0] if texts[s][at] else "" for s in (a, b)]
        scores = [_score(run.attempts(s), order[at]) for s in (a, b)]
        task = run.tasks().get(order[at])
        return self.show(
            "words.html",
            run=run,
            stages=stages,
            a=a,
            b=b,
            at=at,
            n=n,
            pair=_difference(*pair),
            scores=scores,
            task=task,
        )

    def continual(self, request: Request) -> Response:
        run = self._run(request)
        if run.kind != "continual":
            raise SealError(f"{run.name} is no continual run")
        record = run.file("continual.json")
        if not record:
            return self.show("continual.html", run=run, rows=[], live=run.status == "running")
        summary = summarise([record], str(record.get("command", "")))
        names = [r["setting"] for r in summary["rows"]]
        chosen = request.query_params.get("strategy") or names[0]
        if chosen not in names:
            raise SealError(f"the run {run.name} has no strategy {chosen!r}")
        table = summary["matrices"][chosen]
        ages = {
            r["setting"]: [(age, x) for age, x in enumerate(r["gain_by_age"]) if x is not None]
            for r in summary["rows"]
        }
        top = max((x for row in ages.values() for _, x in row), default=1.0) * 1.15
        curve = Markup(
            charts.lines(
                {k: [(a, max(0.0, x)) for a, x in v] for k, v in list(ages.items())[:6]},
                "gain by age",
                "edits since the passage's own",
                top,
            )
        )
        return self.show(
            "continual.html",
            run=run,
            rows=summary["rows"],
            names=names,
            chosen=chosen,
            table=table,
            curve=curve,
        )

    def compare(self, request: Request) -> Response:
        """Two runs, setting by setting, paired over tasks."""
        runs = [r for r in self.folder.runs() if (r.path / "results.json").exists()]
        names = [request.query_params.get(k, "") for k in ("a", "b")]
        rows: list[Json] = []
        other_settings: list[tuple[Any, ...]] = []
        note = ""
        if all(names):
            a, b = (self.folder.run(n).file("results.json") or {} for n in names)
            prints = [(self.folder.run(n).file("tasks/fingerprints.json") or {}).get("eval") for n in names]
            if not same_tasks(a, b) or (all(prints) and prints[0] != prints[1]):
                note = "The two runs were not tested on the same tasks: their differences are not shown."
            settings = {s["setting"]: s for s in b.get("settings", ())}
            for s in a.get("settings", ()):
                if other := settings.get(s["setting"]):
                    paired = not note and len(s["scores"]) == len(other["scores"])
                    gap = difference([other["scores"]], [s["scores"]], a.get("groups")) if paired else None
                    pair = tuple(
                        means_of(tuple(x["scores"]), tuple(r.get("groups") or ()) or None)
                        for x, r in ((s, a), (other, b))
                    )
                    rows.append({"setting": s["setting"], "a": pair[0], "b": pair[1], "gap": gap})
            one, two = differing({"a": a.get("of") or {}, "b": b.get("of") or {}}).values()
            other_settings = [(k, one[k], two[k]) for k in one]
        return self.show(
            "compare.html",
            other_settings=other_settings,
            runs=runs,
            a=names[0],
            b=names[1],
            rows=rows,
            note=note,
        )

    async def teach(self, request: Request) -> Response:
        if request.method == "POST":
            return await self.classroom.begin(request)
        return self.show("teach.html", taught=[r for r in self.folder.runs() if r.kind == "taught"][:PAGE])

    async def taught(self, request: Request) -> Response:
        if (failed := self.classroom.failed(request.query_params.get("name", ""))) is not None:
            raise SealError(failed)
        run = self._run(request)
        if run.kind != "taught":
            raise SealError(f"{run.name} was not taught documents")
        question = ""
        answers: list[tuple[str, str]] = []
        if request.method == "POST":
            question, answers = await self.classroom.ask(request, run.path)
        state = self.classroom.state(run.path, run.name)
        return self.show(
            "taught.html",
            **state,
            run=run,
            question=question,
            answers=answers,
            live=state["busy"] and not question,
        )

    def _run(self, request: Request) -> Run:
        return self.folder.run(request.query_params.get("name", ""))


def _paged(request: Request, total: int, size: int = PAGE) -> tuple[Json, range]:
    """Which page is asked for, the addresses of its neighbours, and the places of its rows."""
    last = max(1, -(-total // size))
    page = max(1, min(last, _number(request.query_params.get("page"), 1)))
    link = {
        n: "?" + str(request.url.include_query_params(page=n).query)
        for n in (page - 1, page + 1)
        if 1 <= n <= last
    }
    found = {"number": page, "last": last, "before": link.get(page - 1), "after": link.get(page + 1)}
    return found, range((page - 1) * size, min(total, page * size))


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else otherwise


def _task_row(file: AttemptsFile, task: str, title: str) -> Json:
    briefs = [file.briefs[i] for i in file.by_task[task]]
    rewards = [float(b.reward) for b in briefs if b.reward is not None]
    return {
        "task": task,
        "title": title,
        "attempts": len(briefs),
        "edits": len({b.edit for b in briefs}),
        "bad": sum(b.status != "ok" for b in briefs),
        "before": briefs[0].before,
        "mean": sum(rewards) / len(rewards) if rewards else None,
        "best": max(rewards, default=None),
        "spread": float(np.std(rewards)) if rewards else None,
    }


def _before(run: Run, stage: str, file: AttemptsFile, task: str) -> list[str]:
    """The unadapted model's answers; they stand in the order of the stage's tasks, which is that of its
    attempts."""
    answers = run.file(f"{stage}/before.json")
    order = list(file.by_task).index(task)
    return answers[order] if isinstance(answers, list) and order < len(answers) else []


def _answers(attempt: Json, questions: list[Json], before: list[str]) -> list[Json]:
    """Each question with the answers before and after, and whether the latter is right."""
    found = []
    for i, score in enumerate(attempt["scores"]):
        question = questions[i] if i < len(questions) else {}
        after = attempt["answers"][i] if i < len(attempt["answers"]) else ""
        was = before[i] if i < len(before) else ""
        found.append(
            {
                "question": question.get("question", f"test {i + 1}"),
                "gold": question.get("answer", ""),
                "before": was,
                "after": after,
                "right": score >= 1,
                "changed": was.strip() != after.strip(),
            }
        )
    return found


def _rows_made(domain: Any, task: Any, text: str) -> list[str]:
    """The training rows that an edit makes, as text; of puzzles there are too many to read."""
    if domain is None or task is None or "context" not in task.data:
        return []
    made = domain.parse(task, text)
    return [e.completion for e in getattr(made, "examples", ())][:64]


def _score(file: AttemptsFile, task: str) -> float | None:
    found = [file.briefs[i].after for i in file.by_task.get(task, ()) if file.briefs[i].edit == 0]
    return sum(found) / len(found) if found else None


def _difference(a: str, b: str) -> list[tuple[str, str]]:
    """Words of b with what was taken from a and put in: (*same*, *gone* or *new*, words)."""
    left, right = _words(a), _words(b)
    found: list[tuple[str, str]] = []
    for what, i, j, k, n in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if what == "equal":
            found.append(("same", "".join(left[i:j])))
            continue
        found += [(kind, "".join(x)) for kind, x in (("gone", left[i:j]), ("new", right[k:n])) if x]
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|[^\s]+", text[:8000])


def _share(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _spread(value: Interval | None) -> str:
    return "–" if value is None else f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _duration(seconds: float | None) -> str:
    if not seconds:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min {rest} s"
        if minutes
        else f"{seconds:.2g} s"
    )
