import pytest

from raft_peft.tasks.movielens import GRID, HISTORY_LENGTH, PROMPT, SPLIT_SIZES, load_movielens

MOVIES = 400


def set_sizes(monkeypatch, *sizes):
    for name, size in zip(("train", "validation", "test"), sizes, strict=True):
        monkeypatch.setitem(SPLIT_SIZES, name, size)


@pytest.fixture(autouse=True)
def small_splits(monkeypatch):
    set_sizes(monkeypatch, 10, 4, 4)


def write(folder, ratings):
    movies = "".join(f"{number}::Movie {number}, The: Été (1995)::Drama|War\n" for number in range(MOVIES))
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))
    text = "".join(line if isinstance(line, str) else "::".join(map(str, line)) + "\n" for line in ratings)
    (folder / "ratings.dat").write_bytes(text.encode("latin-1"))
    return folder


def title(movie):
    return f"Movie {movie}, The: Été (1995)"


def many_users(users=18, ratings=15):
    """Every movie is rated by one user only, so that a prompt says whose it is; the latest rating comes first."""
    for user in range(users):
        for place in reversed(range(ratings)):
            yield user, user * ratings + place, (user + place) % 5 + 1, 1_000_000_000 + place


def rows(dataset):
    return [(row["prompt"], row["label"]) for split in dataset.values() for row in split]


def all_rows(folder, monkeypatch, count):
    """Every rating that can be drawn, by asking for as many as there are."""
    set_sizes(monkeypatch, count - 2, 1, 1)
    return dict(rows(load_movielens(folder)))


def test_the_splits_and_the_prompt(tmp_path):
    dataset = load_movielens(write(tmp_path, many_users()))
    assert {name: len(split) for name, split in dataset.items()} == {"train": 10, "validation": 4, "test": 4}
    assert dataset["train"].column_names == ["prompt", "label"]
    assert set(dataset["train"]["label"]) <= {float(value) for value in GRID}
    assert len(set(rows(dataset))) == 18
    assert not PROMPT[-1].isspace()


def test_the_history_is_what_came_before_in_order(tmp_path, monkeypatch):
    ratings = [
        (1, 30, 3, 300),
        (2, 31, 1, 50),
        (1, 20, 2, 200),
        (1, 21, 4, 200),  # in the same second as the rating above it, so it comes after
        (1, 10, 5, 100),
    ]
    prompts = all_rows(write(tmp_path, ratings), monkeypatch, count=3)
    first, second, third = f"{title(10)}: 5", f"{title(20)}: 2", f"{title(21)}: 4"
    assert prompts == {
        PROMPT.format(movie=title(20), history=first): 2.0,
        PROMPT.format(movie=title(21), history=f"{first}, {second}"): 4.0,
        PROMPT.format(movie=title(30), history=f"{first}, {second}, {third}"): 3.0,
    }


def test_the_history_is_of_the_most_recent_ratings(tmp_path, monkeypatch):
    count = HISTORY_LENGTH + 3
    prompts = all_rows(write(tmp_path, many_users(1, count)), monkeypatch, count - 1)
    last = next(prompt for prompt in prompts if f"Candidate Item: {title(count - 1)}." in prompt)
    shown = [movie for movie in range(count) if f"{title(movie)}: " in last]
    assert shown == list(range(2, count - 1))


def test_no_user_is_in_two_splits(tmp_path):
    dataset = load_movielens(write(tmp_path, many_users()), split_by="user")
    users = {
        name: {movie // 15 for movie in range(18 * 15) if any(title(movie) in p for p in split["prompt"])}
        for name, split in dataset.items()
    }
    assert not users["train"] & users["validation"]
    assert not users["train"] & users["test"]
    assert not users["validation"] & users["test"]


def test_the_draw_follows_the_seed(tmp_path):
    write(tmp_path, many_users())
    first, again, other = (rows(load_movielens(tmp_path, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1::2::3\n", "it has 3 fields separated by '::', not 4"),
        ("1,2,3,4\n", "it has 1 fields"),
        ("1::2::nan::4\n", "the rating 'nan' is not 1, 2, 3, 4 or 5"),
        ("1::2::6::4\n", "the rating '6' is not"),
        ("x::2::3::4\n", "'x' is not a whole number"),
        ("1::2::3::4.5\n", "'4.5' is not a whole number"),
        (f"1::{MOVIES}::3::4\n", f"movies.dat has no title for the movie {MOVIES}"),
    ],
)
def test_a_malformed_line_is_named_or_skipped(tmp_path, caplog, line, reason):
    good = [*many_users()]
    write(tmp_path, good)
    without = rows(load_movielens(tmp_path))
    write(tmp_path, [*good[:2], line, *good[2:]])
    with pytest.raises(ValueError, match=f"ratings.dat, line 3: {reason}.*pass on_malformed='skip'"):
        load_movielens(tmp_path)
    assert rows(load_movielens(tmp_path, on_malformed="skip")) == without
    assert [record.getMessage() for record in caplog.records] == [
        f"Skipped 1 malformed line(s) of {tmp_path / 'ratings.dat'}: 3."
    ]


def test_a_malformed_movie(tmp_path):
    write(tmp_path, many_users())
    with (tmp_path / "movies.dat").open("a") as file:
        file.write("900::No genres\n")
    with pytest.raises(ValueError, match=rf"movies.dat, line {MOVIES + 1}: it has 2 fields"):
        load_movielens(tmp_path)
    assert len(rows(load_movielens(tmp_path, on_malformed="skip"))) == 18


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"Get it from https://grouplens.org/datasets/movielens/1m/ and give the"):
        load_movielens(None)
    with pytest.raises(FileNotFoundError, match=r"movies.dat is missing. Give the folder ml-1m"):
        load_movielens(tmp_path)
    write(tmp_path, many_users(ratings=2))
    with pytest.raises(ValueError, match="on_malformed is None"):
        load_movielens(tmp_path, on_malformed=None)
    with pytest.raises(ValueError, match="split_by is 'movie'"):
        load_movielens(tmp_path, split_by="movie")
    with pytest.raises(ValueError, match=r"sizes is .*must give the rows of each split"):
        load_movielens(tmp_path, sizes={"train": 10})
    for split_by, found in (("rating", "10 train, 4 validation, 3 test"), ("user", "9 train, 4 validation, 4 test")):
        message = f"has {found} ratings .* split by {split_by}, .* of 10 train, 4 validation, 4 te"
        with pytest.raises(ValueError, match=message):
            load_movielens(write(tmp_path, many_users(17, ratings=2)), split_by=split_by)
    (tmp_path / "ratings.dat").unlink()
    with pytest.raises(FileNotFoundError, match=r"ratings.dat is missing"):
        load_movielens(tmp_path)
