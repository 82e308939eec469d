"""Typed questions on the command line: whether rows ask them, and their evaluation."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_peft.cli.options import open_predictor, saved_config
from raft_peft.cli.remote import DECISIONS, SYSTEMONE, choose_api, open_decisions, refuse_server_options
from raft_peft.methods.fields import MethodFields

if TYPE_CHECKING:
    from raft_peft.data.questions.form import QuestionForm
    from raft_peft.data.questions.row import QuestionRow
    from raft_peft.methods.saved_folder import RaftConfig
    from raft_peft.prediction.questions.answering import Answering
    from raft_peft.prediction.questions.evaluation import QuestionEvaluation

# Options of rows with one number. How an answer is read is not a choice, but for the attention.
_OF_NUMBERS = (
    *("grid", "chat", "system", "separator", "calibrated", "label_column", "group_column", "label_map"),
    *("round_to_grid", *(one.name for one in fields(MethodFields) if one.name != "attention")),
    *("score_prefix", "num_reasonings", "temperature", "max_reasoning_tokens", "seed", "reasons"),
)
# In the order in which they are printed.
_METRICS = (
    *("rmse", "mae", "pearson", "spearman", "qwk", "accuracy", "auc", "nll", "kl", "brier", "ece"),
    *("calibration_error", "label_mass", "coverage", "mean_width", "mean_options"),
)


def question_form(parser: ArgumentParser, options: Namespace, *, with_targets: bool = False) -> QuestionForm | None:
    """How the rows of the options ask typed questions; None where they have one number.

    They do where there are `--questions`, where the model was trained on such, or where rows bring their own and are
    not ones for the model's grid. The first row is read, before a model is loaded.

    Args:
        parser: of the options.
        options: name the rows, the model and the questions.
        with_targets: whether the rows' targets are read, see `question_rows`.

    Raises:
        ValueError: questions or the first row cannot be read, or an option is for the other kind of rows.
    """
    from raft_peft.data.prompt_template import PromptTemplate
    from raft_peft.data.questions.form import QuestionForm, is_from_table, read_questions
    from raft_peft.data.questions.question import Question
    from raft_peft.data.row_sources import read_rows

    row = next(iter(read_rows(options.source)), None)
    questions = None if options.questions is None else read_questions(options.questions)
    saved = None
    if options.base_url is None:
        refuse_server_options(options)
        saved = saved_config(options)
        asks = questions is not None or _asks(options, saved, row)
    else:
        asks_questions = questions is not None or _brings_questions(row)
        options.api = choose_api(parser, options, asks_questions=asks_questions)
        asks = options.api in (SYSTEMONE, DECISIONS)
    if not asks:
        if options.question_template is not None:
            raise ValueError(
                f"`question_template` is for typed questions, and {options.source} has none. Leave it out, or pass "
                "them: `questions=questions.json`."
            )
        return None
    _refuse_options_of_numbers(parser, options)
    template = options.prompt_template
    if saved is not None and saved.asks_questions:
        template = saved.prompt_template if template is None else template
        if questions is None and saved.questions is not None:
            questions = {name: Question.of(name, raw) for name, raw in saved.questions.items()}
    if options.base_url is not None and questions is None and not _brings_questions(row):
        told = open_decisions(options, options.api).questions or {}
        questions = {name: Question.of(name, raw) for name, raw in told.items()} or None
    form = QuestionForm(questions, PromptTemplate.of(template), is_from_table(options.source))
    if row is not None:
        if options.prompt_template is not None and form.template is not None:
            form.template(row, 0)
        # Where there are targets, all rows are read before the model, and named together.
        if not with_targets:
            form.row(row, 0, with_targets=False)
    return form


def _asks(options: Namespace, saved: RaftConfig | None, row: Mapping[str, Any] | None) -> bool:
    """Whether rows ask typed questions where no option says so."""
    from raft_peft.data.prompt_form import PromptForm
    from raft_peft.data.prompt_template import PromptTemplate

    # After training on questions, the template writes states.
    template = None if saved is None or saved.asks_questions else PromptTemplate.of(saved.prompt_template)
    own = {} if row is None else row
    written = options.prompt_template is not None or options.chat or options.system is not None
    fits_grid = written or PromptForm(template).has_prompt(own)
    if saved is not None and saved.asks_questions:
        return options.grid is None or not fits_grid
    has_grid = options.grid is not None or saved is not None
    return _brings_questions(row) and not (has_grid and fits_grid)


def _brings_questions(row: Mapping[str, Any] | None) -> bool:
    """Whether a row holds its own questions."""
    from raft_peft.data.questions.row import QUESTIONS

    asked = (row or {}).get(QUESTIONS)
    return isinstance(asked, Mapping) or (isinstance(asked, str) and asked.lstrip().startswith("{"))


def _refuse_options_of_numbers(parser: ArgumentParser, options: Namespace) -> None:
    for name in _OF_NUMBERS:
        if getattr(options, name, None) != parser.get_default(name):
            why = "which bring their options along" if name == "grid" else "each read off its own options"
            raise ValueError(
                f"`{name}` is for rows with one number, and here typed questions are asked, {why}. Leave it out."
            )


def check_intervals(options: Namespace, form: QuestionForm) -> None:
    """Refuse intervals that no calibration of a model's folder can give, before the model is loaded.

    The questions are those of the form, and those of the first row.

    Raises:
        ValueError: there is no calibration, or one of other questions or of too few rows.
    """
    from raft_peft.data.row_sources import read_rows
    from raft_peft.methods.saved_folder import QUESTION_CALIBRATION_NAME
    from raft_peft.prediction.questions.calibration import QuestionCalibration

    if options.interval is None or options.base_url is not None or not Path(options.model).is_dir():
        return
    path = Path(options.model) / QUESTION_CALIBRATION_NAME
    if not path.is_file():
        raise ValueError(
            f"{options.model!r} is not calibrated for questions. Run: raft-peft calibrate HELDOUT_ROWS --model "
            f"{options.model}"
        )
    calibration = QuestionCalibration.load(path)
    for row in islice(read_rows(options.source), 1):
        for question in form.row(row, 0, with_targets=False).questions:
            calibration.of(question).check(options.interval)


def question_rows(options: Namespace, form: QuestionForm) -> list[QuestionRow]:
    """The rows of the options with their targets.

    Raises:
        ValueError: there are none, or they cannot be read. The message names the rows.
    """
    from raft_peft.data.row_sources import read_rows

    try:
        rows = form.rows(islice(read_rows(options.source), options.limit))
    except ValueError as error:
        raise ValueError(f"{options.source}: {error}") from error
    if not rows:
        raise ValueError(f"{options.source} has no rows.")
    return rows


def question_predictor(options: Namespace) -> Answering:
    """What answers the questions: the model of the options, here or behind a server."""
    if options.base_url is not None:
        return open_decisions(options, options.api)
    return open_predictor(options, for_questions=True)


def calibrate(options: Namespace, form: QuestionForm) -> None:
    """Learn from rows with targets how far the answers err, and save it in the model's folder.

    Raises:
        ValueError: as `question_rows`, or no question can be calibrated.
    """
    from raft_peft.methods.saved_folder import QUESTION_CALIBRATION_NAME

    rows = question_rows(options, form)
    predictor = open_predictor(options, for_questions=True)
    calibration = predictor.calibrate_questions(
        rows, options.batch_size, intervals=options.intervals, batch_tokens=options.batch_tokens
    )
    folder = Path(options.model)
    there = (folder / QUESTION_CALIBRATION_NAME).is_file()
    calibration.save(folder)
    replaces = " It replaces the calibration that was there." if there else ""
    print(f"Calibrated on {len(rows)} rows. Saved in {folder}.{replaces}")
    print(calibration)


def evaluate(options: Namespace, form: QuestionForm) -> None:
    """Answer questions that have a target, and print, write and draw how good the answers are.

    Raises:
        ValueError: as `question_rows`, or there is no picture of such questions.
    """
    from raft_peft.prediction.questions.evaluation import check_targets, evaluate_question_rows

    check_intervals(options, form)
    rows = question_rows(options, form)
    check_targets(rows)
    if options.picture is not None and all(
        one.grid is None and one.type != "score" for row in rows for one in row.questions
    ):
        raise ValueError(
            f"`picture={options.picture!r}` is of expected levels and numbers, and there are none among these "
            "questions. Leave it out."
        )

    found = evaluate_question_rows(
        question_predictor(options),
        rows,
        batch_size=options.batch_size,
        batch_tokens=options.batch_tokens,
        interval=options.interval,
    )
    print(f"{found.rows} rows of {options.source}, {len(found.asked.ids) + found.refused} questions")
    if found.refused:
        print(f"The server refused {found.refused} of them. The metrics are those of the others.")
    print(table(found))
    if options.output is not None:
        found.save(options.output)
    if options.picture is not None:
        from raft_peft.plots import plot_answers

        plot_answers(options.picture, found.expected(), title=Path(options.model).resolve().name)
        print(f"Pictures: {options.picture}")


def table(evaluation: QuestionEvaluation) -> str:
    """The metrics of an evaluation, a question a line, then the types, then what is of all."""
    types = dict(zip(evaluation.asked.ids, evaluation.asked.types, strict=True))
    lines: list[tuple[list[str], Mapping[str, float]]] = [
        ([name, types[name]], metrics) for name, metrics in evaluation.by_question.items()
    ]
    # Of a type that one question has, the line would say the same again.
    lines += [
        (["all", name], metrics)
        for name, metrics in evaluation.by_type.items()
        if not evaluation.by_question or list(types.values()).count(name) > 1
    ]
    names = [name for name in _METRICS if any(name in metrics for _, metrics in lines)]
    heads = [["", ""], ["question", "type"]]
    for name in names:
        above, _, below = name.rpartition("_")
        heads[0].append(above)
        heads[1].append(below)
    cells = [
        [*start, *(f"{metrics[name]:.3f}" if name in metrics else "" for name in names)] for start, metrics in lines
    ]
    widths = [max(map(len, column)) for column in zip(*heads, *cells, strict=True)]
    printed = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (*heads, *cells)
    ]
    of_all = [
        f"{name} {evaluation.metrics[name]:.3f}" for name in ("macro_nll", "interval") if name in evaluation.metrics
    ]
    return "\n".join([*printed, ", ".join(of_all)])
