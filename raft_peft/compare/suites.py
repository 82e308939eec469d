"""Tables of the paper as comparisons: methods with their grids and token rows, its tasks, recipe and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# Figures[task][line of the table] is what the paper has there: "2B 0.47 ± 0.01, 9B 0.45 ± 0.00".
Figures = Mapping[str, Mapping[str, str]]

AMAZON = ("amazon_wireless", "amazon_personal_care", "amazon_music")


@dataclass(frozen=True)
class Suite:
    """A table of the paper.

    Attributes:
        description: one line.
        methods: as they are named in `methods`.
        tasks: that it is measured on.
        recipe: of the models that it was measured with.
        figures: the RMSE that the paper has for each line of our table.
    """

    description: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    recipe: str
    figures: Figures


def get_suite(name: str) -> Suite:
    """The suite of this name.

    Raises:
        ValueError: there is none. The message lists the names there are.
    """
    if name not in SUITES:
        raise ValueError(f"There is no suite {name!r}. Choose one of {', '.join(SUITES)}.")
    return SUITES[name]


def _figures(lines: Sequence[str], sizes: Mapping[str, str]) -> dict[str, str]:
    """The paper's figures for the lines of our table.

    Args:
        lines: their names.
        sizes: for each size of model a row of the paper's table, `0.47±0.01 0.48`.
    """
    rows = {size: row.split() for size, row in sizes.items()}
    return {
        line: ", ".join(f"{size} {row[index].replace('±', ' ± ')}" for size, row in rows.items())
        for index, line in enumerate(lines)
    }


_TABLE_3 = ("zero_shot, decoded", "rail:num_samples=32", "ce, decoded", "ce, RAIL", "special_token", "raft")

_GRIDS_13 = ("1..5", "5", "1,9", "4,5", "7,8,9")
_REVERSED = "1=5,2=4,3=3,4=2,5=1"
_GRIDS_14 = ("1..5", "1=a,2=b,3=c,4=d,5=e", _REVERSED, "1=January,2=February,3=March,4=April,5=May")
_GRIDS_20 = (
    "1..5",
    "5",
    "1..9",
    "1=b,2=c,3=d,4=e,5=f",
    _REVERSED,
    "1=Jan.,2=Feb.,3=Mar.,4=Apr.,5=May",
)
_TABLE_18 = tuple(f"raft:grid={grid}{rows}" for grid in ("1..5", "5") for rows in ("", ":token_rows=random"))
_GRANULARITIES = ("0.05", "0.1", "0.2", "0.5", "1.0")


def _raft(grids: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"raft:grid={grid}" for grid in grids)


# To classify is to take the likeliest of the tokens, which is what is decoded where all others are ruled out.
_AUTOREGRESSIVE = "ce:constrained=true"


def _with_tokens(method: str, grid: str, inits: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{method}:grid={grid}:number_tokens={init}" for init in inits)


_TABLE_17 = (
    *_with_tokens(_AUTOREGRESSIVE, "0..5..0.1", ("zero", "first", "average")),
    *_with_tokens("raft", "0..5..0.1", ("zero", "first", "average")),
    *_with_tokens("raft", "1..5", ("zero", "first", "average")),
)
_TABLE_19 = tuple(
    label
    for granularity in _GRANULARITIES
    for method in (_AUTOREGRESSIVE, "raft")
    for label in _with_tokens(method, f"0..5..{granularity}", ("first", "average"))
)


def _lines(methods: Iterable[str]) -> list[str]:
    """The lines of our table that stand for methods: what `ce` decodes, and the others as they are."""
    return [f"{method}, decoded" if method.startswith("ce") else method for method in methods]


SUITES = {
    "table3": Suite(
        "the methods on every dataset; zero-shot RAIL as there, the mean of 32 samples, and exact",
        ("zero_shot", "rail:num_samples=32", "rail", "ce", "special_token", "raft"),
        (*AMAZON, "stsb"),
        "paper_gemma2",
        {
            "amazon_wireless": _figures(
                _TABLE_3,
                {"2B": "0.88 0.88 0.70±0.01 0.67±0.01 0.51±0.01 0.47±0.01",
                 "9B": "0.89 0.88 0.78±0.05 0.86±0.03 0.46±0.00 0.45±0.00"},
            ),
            "amazon_personal_care": _figures(
                _TABLE_3,
                {"2B": "1.00 0.97 0.77±0.01 0.74±0.01 0.52±0.02 0.49±0.00",
                 "9B": "0.97 0.95 0.73±0.14 0.59±0.01 0.48±0.01 0.47±0.01"},
            ),
            "amazon_music": _figures(
                _TABLE_3,
                {"2B": "1.30 1.29 1.16±0.11 0.88±0.12 0.52±0.00 0.50±0.00",
                 "9B": "1.29 1.29 0.83±0.35 0.61±0.02 0.50±0.00 0.47±0.00"},
            ),
            "stsb": _figures(
                _TABLE_3,
                {"2B": "1.10 1.05 0.59±0.01 0.57±0.00 0.54±0.00 0.54±0.01",
                 "9B": "1.37 1.29 0.58±0.00 0.53±0.00 0.52±0.00 0.51±0.01"},
            ),
        },
    ),
    "table5": Suite(
        "the sampled loss (eq. 13) and its sum over the grid (eq. 14) against RAFT",
        ("mbr:num_samples=32", "mbr", "raft"),
        ("stsb",),
        "paper_gemma2",
        {"stsb": _figures(("mbr:num_samples=32", "raft"), {"9B": "0.98 0.40"})},
    ),
    "table13": Suite(
        "RAFT over grids of other numbers",
        _raft(_GRIDS_13),
        AMAZON,
        "paper_gemma2",
        {
            "amazon_wireless": _figures(
                _raft(_GRIDS_13),
                {"2B": "0.47±0.01 0.48±0.01 0.48±0.00 0.48±0.00 0.48±0.01",
                 "9B": "0.45±0.01 0.45±0.01 0.47±0.02 0.46±0.00 0.47±0.01"},
            ),
            "amazon_personal_care": _figures(
                _raft(_GRIDS_13),
                {"2B": "0.49±0.00 0.49±0.00 0.49±0.02 0.49±0.00 0.49±0.00",
                 "9B": "0.47±0.01 0.48±0.01 0.48±0.02 0.47±0.00 0.47±0.00"},
            ),
            "amazon_music": _figures(
                _raft(_GRIDS_13),
                {"2B": "0.50±0.00 0.50±0.00 0.50±0.01 0.50±0.00 0.50±0.01",
                 "9B": "0.46±0.00 0.47±0.00 0.48±0.02 0.47±0.00 0.48±0.00"},
            ),
        },
    ),
    "table14": Suite(
        "RAFT over other texts of the numbers: letters, reversed digits, months",
        _raft(_GRIDS_14),
        AMAZON,
        "paper_gemma2",
        {
            "amazon_wireless": _figures(
                _raft(_GRIDS_14),
                {"2B": "0.47±0.01 0.48±0.01 0.48±0.00 0.83±0.01", "9B": "0.45±0.00 0.46±0.00 0.46±0.01 0.47±0.01"},
            ),
            "amazon_personal_care": _figures(
                _raft(_GRIDS_14),
                {"2B": "0.49±0.00 0.48±0.00 0.48±0.01 0.85±0.00", "9B": "0.47±0.01 0.47±0.00 0.48±0.01 0.48±0.01"},
            ),
            "amazon_music": _figures(
                _raft(_GRIDS_14),
                {"2B": "0.50±0.00 0.50±0.01 0.50±0.01 0.50±0.00", "9B": "0.46±0.00 0.48±0.01 0.47±0.01 0.61±0.25"},
            ),
        },
    ),
    "table16": Suite(
        "RAFT with and without renormalizing",
        ("raft", "raft:renormalize=true"),
        ("stsb",),
        "paper_palm2",
        {
            "stsb": _figures(
                ("raft", "raft:renormalize=true"), {"1B": "0.63±0.00 0.63±0.02", "24B": "0.53±0.00 0.53±0.01"}
            )
        },
    ),
    "table17": Suite(
        "where the rows of new tokens for numbers start",
        _TABLE_17,
        ("stsb",),
        "paper_palm2",
        {
            "stsb": _figures(
                _lines(_TABLE_17),
                {"1B": "1.20±0.01 0.80±0.02 0.98±0.01 0.62±0.00 0.63±0.00 0.64±0.01 0.63±0.00 0.62±0.02 0.61±0.01"},
            )
        },
    ),
    "table18": Suite(
        "RAFT with the rows of the grid's tokens as they are, and at random",
        _TABLE_18,
        ("stsb",),
        "paper_palm2",
        {"stsb": _figures(_TABLE_18, {"1B": "0.63±0.00 0.66±0.02 0.62±0.01 0.64±0.01"})},
    ),
    "table19": Suite(
        "new tokens for numbers from 0.05 to 1 apart, classified and by RAFT",
        _TABLE_19,
        ("stsb",),
        "paper_palm2",
        {
            "stsb": _figures(
                _lines(_TABLE_19),
                {"1B": "0.85±0.01 1.11±0.01 0.61±0.01 0.63±0.00 0.80±0.02 0.98±0.01 0.63±0.00 0.64±0.01 0.83±0.02 "
                 "0.89±0.01 0.64±0.01 0.66±0.02 0.84±0.01 0.87±0.01 0.63±0.01 0.63±0.02 0.81±0.01 0.85±0.01 "
                 "0.62±0.02 0.61±0.01"},
            )
        },
    ),
    "table20": Suite(
        "RAFT over other numbers and other texts of them",
        _raft(_GRIDS_20),
        ("stsb",),
        "paper_palm2",
        {
            "stsb": _figures(
                _raft(_GRIDS_20),
                {"1B": "0.63±0.00 0.62±0.01 0.63±0.01 0.61±0.01 0.62±0.01 0.64±0.01",
                 "24B": "0.53±0.00 0.53±0.01 0.53±0.00 0.54±0.02 0.54±0.00 0.55±0.01"},
            )
        },
    ),
}  # fmt: skip
