"""Options that several commands share."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from raft_peft.console import check_options, unknown_options
from raft_peft.grid.number_grid import GRID_HELP
from raft_peft.methods.fields import LOSS_SETTINGS, MethodFields

if TYPE_CHECKING:
    from raft_peft.data.prompt_template import PromptTemplate
    from raft_peft.methods.saved_folder import RaftConfig
    from raft_peft.prediction.predictor import RegressionPredictor
    from raft_peft.prediction.reasoning.writer import ReasoningOptions

DTYPES = ("auto", "bfloat16", "float16", "float32")
_ON_STATES = " For typed questions about its `state`, pass `questions=questions.json`."
QUANTIZATIONS = ("none", "nf4", "int8")


def parser_of(command: str, usage: str, description: str) -> ArgumentParser:
    """A parser whose usage is a line: what must be given, without the options that may be."""
    return ArgumentParser(
        f"raft-peft {command}",
        usage=f"raft-peft {command} {usage} [options]",
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
        # An abbreviation would be a mistyped name that is taken silently.
        allow_abbrev=False,
    )


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """The options of a command line, which may stand before and behind files.

    Raises:
        ValueError: there is no such option.
    """
    check_options(parser, words)
    options, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        raise unknown_options(parser, unknown)
    return options


def add_predictor_options(parser: ArgumentParser) -> None:
    """The options of all commands that predict: the model, the rows, and how numbers are read."""
    parser.set_defaults(base_url=None)
    parser.add_argument(
        "--model",
        required=True,
        help="Folder or Hub name of a model: one that was saved with its grid, or any with --grid.",
    )
    parser.add_argument("--grid", help=f"{GRID_HELP}. By default those that were saved.")
    parser.add_argument(
        "--prompt-template",
        help="The text of the prompt, with the names of columns in braces: 'Review: {text} Stars:'. Or a JSON list of "
        "chat messages with such texts. By default that of training, or the column `prompt`.",
    )
    parser.add_argument(
        "--chat", action="store_true", help="Send the prompt as the message of a user, through the chat template."
    )
    parser.add_argument("--system", metavar="TEXT", help="A system message before the prompt.")
    parser.add_argument("--separator", help="Text between prompt and number. By default that of training.")
    parser.add_argument(
        "--score-prefix",
        metavar="TEXT",
        help="The words between a row's `reasoning` and its number, in a shell $'\\n[RESULT] '. By default those of "
        "training.",
    )
    parser.add_argument(
        "--max-length", type=positive, help="Greatest length of a prompt in tokens. By default that of training."
    )
    parser.add_argument(
        "--questions",
        metavar="FILE",
        help="Typed questions as JSON, {id: {type, instructions, criteria}}, for rows of a `state` that bring none. "
        "By default those of training.",
    )
    parser.add_argument(
        "--question-template", help="How these are written: vllm, sglang or a JSON object. By default as in training."
    )
    parser.add_argument("--limit", type=positive, metavar="ROWS", help="Read only the first ROWS rows.")
    parser.add_argument("--batch-size", type=positive, default=64, help="Prompts in a forward pass (%(default)s).")
    parser.add_argument("--batch-tokens", type=positive, default=4096, help="Tokens in a forward pass (%(default)s).")
    _add_method_options(parser)
    loading = parser.add_argument_group("how the model is loaded", "The defaults are the settings of training.")
    loading.add_argument("--dtype", choices=DTYPES, help="Dtype of the weights.")
    loading.add_argument("--autocast", choices=DTYPES[1:], help="Dtype of the products.")
    loading.add_argument("--quantization", choices=QUANTIZATIONS, help="Quantization of the weights.")
    loading.add_argument(
        "--attn-implementation", help="eager, sdpa, flash_attention_2 or another attention of transformers."
    )
    loading.add_argument("--revision", help="Branch, tag or commit of a model on the Hub.")
    loading.add_argument("--trust-remote-code", action="store_true", help="Allow the model's own code to run.")


def _add_method_options(parser: ArgumentParser) -> None:
    """Every setting by which numbers are read off a model, None where it is not given."""
    group = parser.add_argument_group(
        "how numbers are read",
        "The defaults are the settings of training. For a model that was not trained here, those of `train`.",
    )
    kinds = get_type_hints(MethodFields)
    for setting in fields(MethodFields):
        if setting.name in LOSS_SETTINGS:
            continue
        kind = kinds[setting.name]
        (kind,) = [one for one in get_args(kind) or (kind,) if one is not type(None)]
        reading: dict[str, Any] = {"type": kind}
        if kind is bool:
            reading = {"type": truth_value, "nargs": "?", "const": True, "metavar": "true|false"}
        group.add_argument(f"--{setting.name.replace('_', '-')}", help=setting.metadata["help"], **reading)


def add_reasoning_options(parser: ArgumentParser, *, by_default: int | None = None) -> None:
    """The options of commands that let the model write reasonings before its numbers.

    Args:
        parser: of the command.
        by_default: the reasonings of a row where nothing is said; None for none.
    """
    group = parser.add_argument_group("reasonings before the numbers")
    unless = "By default none: numbers are read behind the column `reasoning`, if there is one."
    group.add_argument(
        "--num-reasonings",
        type=positive,
        metavar="N",
        default=by_default,
        help=f"Reasonings that the model writes for each row. {unless if by_default is None else '(%(default)s)'}",
    )
    group.add_argument(
        "--temperature", type=float, help="By which they are drawn; 0 for the most likely one. By default 1."
    )
    group.add_argument(
        "--max-reasoning-tokens",
        type=positive,
        metavar="TOKENS",
        help="Greatest length of a reasoning. By default 512. One that does not end by then is closed, and counted.",
    )
    group.add_argument("--seed", type=int, help="Of the random numbers by which they are drawn. By default 0.")


def reasoning_options(options: Namespace) -> ReasoningOptions:
    """How reasonings are written, of the options; empty where none are.

    Raises:
        ValueError: an option has no effect, or no words are known that lead from a reasoning to its score.
    """
    names = ("temperature", "max_reasoning_tokens", "seed")
    given: Any = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.num_reasonings is None:
        if given:
            raise ValueError(
                f"`{next(iter(given))}` is for reasonings that the model writes. Set `num_reasonings`, or leave it "
                "out."
            )
        return {}
    if getattr(options, "base_url", None) is not None:
        raise ValueError(
            "`num_reasonings` lets a model write reasonings, and a model behind `base_url` does not. Leave it out, or "
            "run the model here."
        )
    saved = None if options.score_prefix is not None else saved_config(options)
    if options.score_prefix is None and (saved is None or saved.score_prefix is None):
        raise ValueError(
            f"{options.model!r} was not trained on reasonings, and no words are known that lead from one to its "
            "score. Pass `score_prefix`, in a shell $'\\n[RESULT] ', as the prompts ask for it."
        )
    return {"seed": 0, **given, "num_reasonings": options.num_reasonings}


def truth_value(text: str) -> bool:
    """True or false, of the command line."""
    # Loaded here, since the help of a command needs none of it.
    from transformers.hf_argparser import string_to_bool

    return string_to_bool(text)


def positive(text: str) -> int:
    """A whole number from 1 of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def share(text: str) -> float:
    """A number between 0 and 1 of the command line."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise ArgumentTypeError(f"{text!r} is not a number between 0 and 1, such as 0.9")
    return number


def open_predictor(options: Namespace, *, for_questions: bool = False) -> RegressionPredictor:
    """The model of the options, ready to predict; or to answer typed questions, which have no grid and no prompts."""
    from raft_peft.grid import NumberGrid
    from raft_peft.methods.saved_folder import hub_options
    from raft_peft.prediction.opening import check_grid_is_known
    from raft_peft.prediction.predictor import RegressionPredictor

    names = ["dtype", "autocast", "attn_implementation", "revision", "trust_remote_code"]
    names += ["question_template"] if for_questions else []
    given = method_options(options)
    given |= {name: value for name in names if (value := getattr(options, name)) is not None}
    grid = None if options.grid is None else NumberGrid.parse(options.grid)
    template = None if for_questions else chosen_template(options)
    if template is not None:
        given["prompt_template"] = template
    if options.quantization is not None:
        given["quantization_config"] = _quantization_config(options.quantization)
    with _model_named(options.model):
        if not for_questions:
            check_grid_is_known(options.model, grid, hub_options(given))
        return RegressionPredictor.from_pretrained(options.model, grid, **given)


def method_options(options: Namespace) -> dict[str, Any]:
    """The options by which numbers are read off a model, where they are given."""
    names = [setting.name for setting in fields(MethodFields) if hasattr(options, setting.name)]
    names += ["separator", "score_prefix", "max_length"]
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def saved_config(options: Namespace) -> RaftConfig | None:
    """The `raft_config.json` of the model of the options; None where it has none."""
    from raft_peft.methods.saved_folder import RaftConfig, check_there_is

    hub = {} if options.revision is None else {"revision": options.revision}
    with _model_named(options.model):
        check_there_is(options.model, hub)
        return RaftConfig.find(options.model, hub)


@contextmanager
def _model_named(model: str) -> Iterator[None]:
    """Errors of opening a model, which name it."""
    try:
        yield
    except OSError as error:
        if model in str(error):
            raise
        # What the Hub's client says does not name the model.
        raise OSError(
            f"The model {model!r} cannot be opened: {error}\nPass a folder that holds a model and its "
            "tokenizer, or the name of a model on the Hub that can be reached."
        ) from error


def _quantization_config(name: str) -> Any:
    from transformers import BitsAndBytesConfig

    from raft_peft.training.quantization import qlora

    if name == "none":
        return False
    return BitsAndBytesConfig(load_in_8bit=True) if name == "int8" else qlora()["quantization_config"]


def chosen_template(options: Namespace) -> PromptTemplate | None:
    """The prompt template of the options; None where they name none."""
    from raft_peft.data.prompt_template import PromptTemplate

    return PromptTemplate.of(options.prompt_template, chat=options.chat, system=options.system)


def check_rows(options: Namespace, label_column: str | None = None, group_column: str | None = None) -> None:
    """Refuse rows that cannot be used, by the first of them, before a model is loaded.

    Args:
        options: name the rows, and how prompts are written.
        label_column: the column of the label; None where rows need none.
        group_column: the column of the group; None where rows need none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file of another format, without rows where there must be labels, or without a named column.
    """
    from raft_peft.data.labels import LabelColumn
    from raft_peft.data.prompt_form import PromptForm
    from raft_peft.data.prompt_template import PromptTemplate
    from raft_peft.data.row_sources import read_rows
    from raft_peft.methods.saved_folder import RAFT_CONFIG_NAME, RaftConfig

    source, template = options.source, chosen_template(options)
    row = next(iter(read_rows(source)), None)
    if row is None and label_column is not None:
        raise ValueError(f"{source} has no rows.")
    if row is None:
        return
    if label_column is not None and not LabelColumn.of(label_column).is_in(row):
        raise ValueError(
            f"{source} has the columns {list(row)}, and no label in {label_column!r}. Pass the name of the column of "
            "the label as `label_column`."
        )
    if group_column is not None and group_column not in row:
        raise ValueError(
            f"{source} has the columns {list(row)}, and no {group_column!r}. Pass the name of the column that names "
            "the group of a row as `group_column`."
        )
    if template is not None:
        template(row, 0)
        return
    if options.base_url is not None:
        # The server knows what its model reads, and is asked before a file is written.
        return
    path = Path(options.model) / RAFT_CONFIG_NAME
    saved = PromptTemplate.of(RaftConfig.load(path).prompt_template) if path.is_file() else None
    form = PromptForm(saved)
    if form.has_prompt(row):
        form.written(row, 0)
        return
    of_model = "" if saved is None else f", nor those of the prompt template {saved!r} of the model"
    raise ValueError(
        f"{source} has the columns {list(row)}, and no `prompt`{of_model}. Rename the column of the text, or set "
        "`prompt_template`, such as 'Review: {text} Stars:'." + (_ON_STATES if "state" in row else "")
    )


def check_calibration(options: Namespace, *, mapped: bool = False) -> None:
    """Refuse what no calibration of a model's folder can give, before the model is loaded.

    Args:
        options: name the model, and the level of the intervals.
        mapped: whether predictions are to be mapped to labels.

    Raises:
        ValueError: there is no calibration, or one of too few rows or without a map.
    """
    from raft_peft.methods.saved_folder import CALIBRATION_NAME
    from raft_peft.prediction.calibrating.applied import AppliedCalibration
    from raft_peft.prediction.calibrating.calibration import Calibration

    model, level = options.model, options.interval
    if (level is None and not mapped) or options.base_url is not None or not Path(model).is_dir():
        return
    path = Path(model) / CALIBRATION_NAME
    if not path.is_file():
        option = " --label-map affine" if mapped else ""
        raise ValueError(f"{model!r} is not calibrated. Run: raft-peft calibrate HELDOUT_ROWS --model {model}{option}")
    AppliedCalibration(Calibration.load(path), interval=level, mapped=mapped)


def check_writable(path: str | None) -> None:
    """Refuse a file that cannot be made, before hours of prediction and not behind them.

    Raises:
        FileNotFoundError: there is no folder for it.
    """
    if path is not None and not Path(path).parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(Path(path).parent)!r} to write {Path(path).name} to.")
