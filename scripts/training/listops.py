# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""ListOps (Nangia and Bowman, 2018) at the lengths of Long Range Arena (Tay et al., 2021), made from a seed.

`scripts/listops_dataset.py` states the rules.
"""

import random
import statistics
from collections import Counter, defaultdict

import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Value
from tqdm import tqdm

from training.data import RULES_FILE
from training.files import read_json, write_json, write_whole


OPERATOR_PROBABILITY = 0.25
MAX_DEPTH = 10  # of a node; the root has depth 1
MIN_ARGUMENTS, MAX_ARGUMENTS = 2, 10
DIGITS = tuple("0123456789")
CLOSING = "]"
OPERATORS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda arguments: _whole_median(sorted(arguments)),
    "[SM": lambda arguments: sum(arguments) % 10,
}
OPENINGS = tuple(OPERATORS)
SHORTEST = 2 + MIN_ARGUMENTS

# Made in this order, each from a seed of its own and without what came before: the examples to measure on do not depend
# on how many there are to train on.
SPLITS = ("test", "validation", "train")
COLUMNS = Features({"text": Value("string"), "label": ClassLabel(names=list(DIGITS))})
MOST_TRIES = 100_000  # in a row that give nothing new; of trees as drawn, one in 13 has 51 to 199 tokens


def _whole_median(ordered):
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) // 2


def evaluate(text):
    """The value of an expression, computed from its text in the plainest way; labels are tested against it.

    Args:
        text (`str`): like `"[MAX 2 9 [MIN 4 7 ] 0 ]"`.

    Returns:
        `int`, 0 to 9.

    Raises:
        ValueError: it is not an expression.
    """
    tokens = iter(text.split())
    value = _read(next(tokens, "nothing"), tokens)
    rest = list(tokens)
    if rest:
        raise ValueError(f"text must be one expression, but {' '.join(rest)!r} follows it")
    return value


def _read(token, tokens):
    """The value of the expression that begins with `token` and goes on in `tokens`, an iterator."""
    if token in ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"):
        return int(token)
    if token not in ("[MIN", "[MAX", "[MED", "[SM"):
        raise ValueError(f"text must have a digit or an operator where it has {token!r}")
    arguments = []
    for following in tokens:
        if following != "]":
            arguments.append(_read(following, tokens))
        elif not arguments:
            raise ValueError(f"text has {token!r} without arguments")
        elif token == "[MIN":
            return min(arguments)
        elif token == "[MAX":
            return max(arguments)
        elif token == "[MED":
            return int(statistics.median(arguments))
        else:
            return sum(arguments) % 10
    raise ValueError(f"text ends before the bracket of {token!r} is closed")


def draw_expression(draw, min_length, max_length):
    """Draws one expression, and gives it up as soon as it is sure to be too long.

    Args:
        draw (function): returns a number in [0, 1).
        min_length, max_length (`int`): how many tokens are too few, and too many.

    Returns:
        The list of its tokens, or None where there are too few or too many.
    """
    tokens = []
    missing = []  # of every open bracket, the arguments that are still to come
    length = 1  # of the finished expression, if every node to come is a digit
    while True:
        if missing and (len(missing) == MAX_DEPTH - 1 or draw() >= OPERATOR_PROBABILITY):
            tokens.append(DIGITS[int(draw() * 10)])
            missing[-1] -= 1
            while not missing[-1]:
                tokens.append(CLOSING)
                missing.pop()
                if not missing:
                    return tokens if length > min_length else None
                missing[-1] -= 1
        else:
            number = MIN_ARGUMENTS + int(draw() * (MAX_ARGUMENTS - MIN_ARGUMENTS + 1))
            length += 1 + number  # an operator, a bracket and its arguments in the place of one digit
            if length >= max_length:
                return None
            tokens.append(OPENINGS[int(draw() * len(OPENINGS))])
            missing.append(number)


def _value(tokens):
    """The value of drawn tokens, in one pass."""
    outer, arguments = [], []
    for token in tokens:
        if token == CLOSING:
            operator, before = outer.pop()
            before.append(OPERATORS[operator](arguments))
            arguments = before
        elif token in OPERATORS:
            outer.append((token, arguments))
            arguments = []
        else:
            arguments.append(int(token))
    return arguments[0]


def listops_examples(number, *, min_length, max_length, seed, without=()):
    """Makes examples, no two the same.

    Args:
        number (`int`): of examples.
        min_length, max_length (`int`): the tokens of an example, all that its text has between spaces, are more than
            the one and fewer than the other.
        seed (`int`): draws everything. The first of many examples are those of few.
        without (collection of `str`): texts that are left out.

    Yields:
        (text, label): `str` and `int`, 0 to 9.

    Raises:
        ValueError: no example is that long, or there are hardly so many.
    """
    if min_length < 0 or max_length - min_length < 2 or max_length <= SHORTEST:
        raise ValueError(
            f"--max_length must be over {SHORTEST}, the fewest tokens there are, and leave room for a length above "
            f"--min_length, which is at least 0; got --min_length {min_length} and --max_length {max_length}"
        )
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    # the one method that Python promises to give the same numbers in every release
    draw = random.Random(seed).random
    seen = set(without)
    for made in range(number):
        for _ in range(MOST_TRIES):
            tokens = draw_expression(draw, min_length, max_length)
            if tokens is not None and (text := " ".join(tokens)) not in seen:
                break
        else:
            raise ValueError(
                f"no new expression among {MOST_TRIES} between --min_length {min_length} and --max_length "
                f"{max_length} after {made} of {number}; ask for fewer, or for other lengths"
            )
        seen.add(text)
        yield text, _value(tokens)


def rules_of(*, min_length, max_length, seed, **numbers):
    """What is written into the folder of a data set, from which the same one can be made again.

    Args:
        min_length, max_length, seed (`int`): see `listops_examples`.
        numbers (`int`): `num_train`, `num_validation` and `num_test`.

    Raises:
        ValueError: a number of examples is below 1.
    """
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"--{name} must be at least 1, got {number}")
    return {
        "task": "ListOps, LRA-style",
        "operators": [opening.removeprefix("[") for opening in OPENINGS],
        "operator_probability": OPERATOR_PROBABILITY,
        "max_depth": MAX_DEPTH,
        "min_arguments": MIN_ARGUMENTS,
        "max_arguments": MAX_ARGUMENTS,
        "min_length": min_length,
        "max_length": max_length,
        "seed": seed,
        **numbers,
    }


def write_listops(folder, rules):
    """Writes rules.json, test.parquet, validation.parquet and train.parquet, but for those that are there already.

    Args:
        folder (`Path`): where they go.
        rules (`dict`): of `rules_of`.

    Returns:
        `dict` from the path of each file to whether it was made now.

    Raises:
        ValueError: the folder has data by other rules, or by none that are known; see also `listops_examples`.
    """
    if rules["seed"] < 0:
        raise ValueError(f"--seed must be at least 0, got {rules['seed']}")
    _check_folder(folder, rules)
    seen, written = set(), {}
    for i, split in enumerate(SPLITS):
        path, number = folder / f"{split}.parquet", rules[f"num_{split}"]
        written[path] = not _is_complete(path, number)
        if not written[path]:
            if not all(_is_complete(folder / f"{later}.parquet", rules[f"num_{later}"]) for later in SPLITS[i + 1 :]):
                seen.update(pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist())
            continue
        examples = listops_examples(
            number,
            min_length=rules["min_length"],
            max_length=rules["max_length"],
            seed=len(SPLITS) * rules["seed"] + i,
            without=seen,
        )
        texts, labels = zip(*tqdm(examples, desc=split, total=number, unit=" expressions"), strict=True)
        if i == 0:  # nothing is left in the folder by rules that cannot be
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / RULES_FILE, rules)
        data = Dataset.from_dict({"text": texts, "label": labels}, features=COLUMNS)
        write_whole(path, data.to_parquet)
        seen.update(texts)
    return written


def _check_folder(folder, rules):
    """Raises a ValueError unless what a folder has, if anything, was made by these rules."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {str(folder)!r} is a file; name a folder")
    if (folder / RULES_FILE).exists():
        try:
            there = dict(read_json(folder / RULES_FILE))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"--output_dir {str(folder)!r} has a {RULES_FILE} that cannot be read ({error}): choose another folder"
            ) from error
        other = [
            f"{name} is {there.get(name)!r} there and {rules.get(name)!r} here"
            for name in {**rules, **there}
            if there.get(name) != rules.get(name)
        ]
        if other:
            raise ValueError(
                f"--output_dir {str(folder)!r} has data by other rules, {'; '.join(other)}: choose another folder"
            )
    elif found := sorted(path.name for path in folder.glob("*.parquet")):
        raise ValueError(
            f"--output_dir {str(folder)!r} has {', '.join(found)} but no {RULES_FILE} that says what they are: choose "
            "another folder"
        )


def _is_complete(path, number):
    """Whether a file has so many examples."""
    try:
        return pyarrow.parquet.read_metadata(path).num_rows == number
    except (FileNotFoundError, pyarrow.ArrowInvalid):
        return False


def summary(path):
    """What a written split is like.

    Returns:
        `dict` of its number of `examples`, its `mean_length` in tokens, `commonest_share`, the share of its commonest
        class, and `operator_share`, that of the commonest class of each outermost operator: the accuracy of one who
        reads nothing but the first token.
    """
    columns = pyarrow.parquet.read_table(path, columns=["text", "label"])
    texts, labels = columns["text"].to_pylist(), columns["label"].to_pylist()
    of_operator = defaultdict(Counter)
    for text, label in zip(texts, labels, strict=True):
        of_operator[text.split()[0]][label] += 1
    return {
        "examples": len(labels),
        "mean_length": statistics.fmean(text.count(" ") + 1 for text in texts),
        "commonest_share": labels.count(statistics.mode(labels)) / len(labels),
        "operator_share": sum(max(counts.values()) for counts in of_operator.values()) / len(labels),
    }
