# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""ListOps: expressions against a plain evaluator and the rules, and the files; tokenizers of bytes and of words."""

import json
import random
from collections import Counter

import listops_dataset
import pyarrow.parquet
import pytest
import train_text_classification
from datasets import Dataset
from huggingface_hub import ModelCard
from training import listops
from training.data import load_splits
from training.labels import Labels
from training.tokenization import make_byte_tokenizer, train_word_tokenizer
from transformers import AutoTokenizer
from variants import ROOT


SHORT, FULL = {"min_length": 50, "max_length": 200}, {"min_length": 500, "max_length": 2000}


@pytest.mark.parametrize(
    "text, value",
    [
        ("[MIN 4 7 ]", 4),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[MED 9 0 3 ]", 3),
        ("[MED 4 1 ]", 2),  # the whole part of 2.5
        ("[MED 9 8 0 1 ]", 4),  # of 4.5
        ("[MED 6 2 9 4 ]", 5),
        ("[MED 5 5 5 0 0 0 0 ]", 0),
        ("[SM 9 9 9 ]", 7),
        ("[SM 4 6 ]", 0),
        ("[SM 1 [MED 9 [SM 8 8 ] 7 ] [MIN 3 [MAX 0 2 ] ] ]", 0),
    ],
)
def test_values_by_hand(text, value):
    assert listops.evaluate(text) == value
    assert listops._value(text.split()) == value


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must have a digit or an operator where it has 'nothing'"),
        ("[SUM 1 2 ]", r"where it has '\[SUM'"),
        ("[MAX 1 12 ]", "where it has '12'"),
        ("[MAX 1 [MIN ] ]", r"'\[MIN' without arguments"),
        ("[MAX 1 [MIN 2 3 ]", r"ends before the bracket of '\[MAX' is closed"),
        ("[MAX 1 2 ] 3 ]", "must be one expression, but '3 ]' follows"),
    ],
)
def test_what_is_no_expression(text, message):
    with pytest.raises(ValueError, match=message):
        listops.evaluate(text)


def nodes(text):
    """The tree of an expression as a list of (depth, number of arguments), 0 for a digit."""
    found, open_nodes = [], []
    for token in text.split():
        if token == "]":
            found.append((len(open_nodes), open_nodes.pop()))
            continue
        if open_nodes:
            open_nodes[-1] += 1
        if token in ("[MIN", "[MAX", "[MED", "[SM"):
            open_nodes.append(0)
        else:
            assert token in "0123456789" and len(token) == 1
            found.append((len(open_nodes) + 1, 0))
    assert not open_nodes
    return found


@pytest.mark.parametrize("number, lengths", [(400, SHORT), (60, FULL)])
def test_examples_obey_their_rules(number, lengths):
    examples = list(listops.listops_examples(number, **lengths, seed=3))
    assert len({text for text, _ in examples}) == number
    depths = set()
    for text, label in examples:
        assert label == listops.evaluate(text)
        assert lengths["min_length"] < len(text.split()) < lengths["max_length"]
        assert text.startswith("[") and text.split(" ") == text.split()
        tree = nodes(text)
        assert {arguments for _, arguments in tree} <= {0, *range(2, 11)}
        depths |= {depth for depth, _ in tree}
    assert set(range(1, 7)) <= depths <= set(range(1, 11))
    assert lengths != FULL or 10 in depths


def test_lengths_lie_between_their_bounds_and_reach_them():
    drawn = [text for text, _ in listops.listops_examples(200, min_length=5, max_length=9, seed=0)]
    assert {len(text.split()) for text in drawn} == {6, 7, 8}


def test_nodes_are_as_likely_as_the_rules_say():
    draw = random.Random(0).random
    trees = [" ".join(listops.draw_expression(draw, 0, 10**9)) for _ in range(400)]
    free = [arguments for tree in trees for depth, arguments in nodes(tree) if 1 < depth < 10]
    deepest = [arguments for tree in trees for depth, arguments in nodes(tree) if depth == 10]
    assert len(free) > 50000 and sum(map(bool, free)) / len(free) == pytest.approx(0.25, abs=0.01)
    assert len(deepest) > 10000 and not any(deepest)
    for counts, kinds in (
        (Counter(arguments for arguments in free if arguments), range(2, 11)),
        (Counter(token for tree in trees for token in tree.split() if token.startswith("[")), listops.OPENINGS),
        (Counter(token for tree in trees for token in tree.split() if token.isdigit()), listops.DIGITS),
    ):
        assert set(counts) == set(kinds)
        assert all(count / counts.total() * len(kinds) == pytest.approx(1, abs=0.1) for count in counts.values())


def test_a_tree_that_is_too_long_is_given_up_at_once():
    """As soon as the nodes that were announced are too many, without drawing them."""
    numbers = iter([0.99, 0.0])  # ten arguments, of MIN: 12 tokens
    assert listops.draw_expression(lambda: next(numbers), 0, 12) is None
    assert next(numbers) == 0.0


def test_examples_are_of_their_seed():
    few, many = (list(listops.listops_examples(number, **SHORT, seed=7)) for number in (20, 40))
    assert many[:20] == few
    assert list(listops.listops_examples(20, **SHORT, seed=8)) != few
    left_out = list(listops.listops_examples(19, **SHORT, seed=7, without={few[0][0]}))
    assert left_out == few[1:]
    # what any machine and any release of Python draws
    assert few[0] == FIRST_OF_SEED_7


FIRST_OF_SEED_7 = (
    "[SM 8 9 [MAX 0 [MED [MIN [MAX 9 4 7 ] 7 1 8 0 ] 3 [MED 1 9 7 8 4 7 2 5 1 7 ] 8 [MAX [SM 7 7 6 8 0 8 "
    "] 5 7 ] [MIN [MAX 4 2 8 2 [MED 6 1 0 1 ] 9 2 6 3 ] 9 9 [MIN 0 [MAX 2 1 8 3 8 0 4 3 6 5 ] 9 3 0 6 4 8 "
    "7 ] [MIN 8 [MED [MED 2 2 4 6 6 ] 9 6 1 8 3 [SM [MIN 0 3 9 [SM 1 3 4 1 ] 3 9 2 4 ] 6 3 [MAX 6 2 9 2 2 "
    "0 5 9 ] 2 [SM 4 1 6 6 7 9 ] ] ] 3 8 ] 1 ] 5 6 ] 1 0 5 6 4 2 7 1 ] 7 8 7 6 1 ]",
    3,
)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"min_length": 9, "max_length": 10}, "got --min_length 9 and --max_length 10"),
        ({"min_length": 0, "max_length": 4}, "--max_length must be over 4.* got --min_length 0 and --max_length 4"),
        ({"min_length": -1}, "at least 0; got --min_length -1"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"number": 401}, "between --min_length 3 and --max_length 5 after 400 of 401"),  # 4 operators, 100 pairs
    ],
)
def test_examples_that_cannot_be(changes, message):
    arguments = {"number": 1, "min_length": 3, "max_length": 5, "seed": 0, **changes}
    with pytest.raises(ValueError, match=message):
        list(listops.listops_examples(arguments.pop("number"), **arguments))


# --------------------------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------------------------


def make(folder, *more):
    options = ("--num_train", "60", "--num_validation", "30", "--num_test", "20", "--seed", "2")
    listops_dataset.main(["--output_dir", str(folder), *options, *more])


def rows(folder, split):
    table = pyarrow.parquet.read_table(folder / f"{split}.parquet")
    return list(zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True))


def test_script_writes_what_is_trained_on(tmp_path, capsys):
    make(tmp_path / "a")
    printed = capsys.readouterr().out.splitlines()
    splits = {split: rows(tmp_path / "a", split) for split in ("train", "validation", "test")}
    assert {split: len(found) for split, found in splits.items()} == {"train": 60, "validation": 30, "test": 20}
    every = [row for found in splits.values() for row in found]
    assert len({text for text, _ in every}) == len(every)
    assert all(type(label) is int and label == listops.evaluate(text) for text, label in every)
    assert all(50 < len(text.split()) < 200 for text, _ in every)
    for split, found in splits.items():
        (line,) = [line for line in printed if f"{split}.parquet" in line]
        mean = sum(len(text.split()) for text, _ in found) / len(found)
        share = max(Counter(label for _, label in found).values()) / len(found)
        assert (
            f"{len(found)} expressions; {mean:.1f} tokens on average; share of the commonest class {share:.4f}" in line
        )
        right = 0
        for operator in ("[MIN", "[MAX", "[MED", "[SM"):
            values = Counter(label for text, label in found if text.startswith(f"{operator} "))
            right += max(values.values(), default=0)
        assert line.endswith(f", of that of each outermost operator {right / len(found):.4f}")
    rules = json.loads((tmp_path / "a/rules.json").read_text())
    assert (rules["min_length"], rules["max_length"], rules["seed"], rules["num_train"]) == (50, 200, 2, 60)

    loaded = load_splits(dataset_dir=str(tmp_path / "a"))  # beside rules.json
    assert {split: list(zip(data["text"], data["label"], strict=True)) for split, data in loaded.items()} == splits
    assert loaded["train"].features["label"].names == [str(digit) for digit in range(10)]

    make(tmp_path / "b", "--num_train", "20")
    assert rows(tmp_path / "b", "test") == splits["test"] and rows(tmp_path / "b", "validation") == splits["validation"]
    assert rows(tmp_path / "b", "train") == splits["train"][:20]


def test_no_split_has_what_another_has(tmp_path):
    make(tmp_path, "--min_length", "3", "--max_length", "5", "--num_train", "300", "--num_validation", "50")
    every = [text for split in ("train", "validation", "test") for text, _ in rows(tmp_path, split)]
    assert len(every) == len(set(every)) == 370  # of 400 that there are


def test_script_makes_nothing_twice(tmp_path, capsys):
    make(tmp_path)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    assert set(before) == {"rules.json", "train.parquet", "validation.parquet", "test.parquet"}
    capsys.readouterr()
    make(tmp_path)
    assert capsys.readouterr().out.count("already there") == 3
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()} == before

    (tmp_path / "validation.parquet").unlink()  # a run that was killed goes on, to the same data
    (tmp_path / "train.parquet").write_bytes(before["train.parquet"][1][:-100])
    make(tmp_path)
    assert capsys.readouterr().out.count("already there") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        name: content for name, (_, content) in before.items()
    }


def test_script_refuses_a_folder_with_other_data(tmp_path):
    make(tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    with pytest.raises(SystemExit, match=r"a' has data by other rules, num_train is 60 there and 61 here: choose"):
        make(tmp_path / "a", "--num_train", "61")
    with pytest.raises(SystemExit, match="seed is 2 there and 3 here"):
        make(tmp_path / "a", "--seed", "3")
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    (tmp_path / "a/rules.json").unlink()
    with pytest.raises(SystemExit, match=r"has test.parquet, train.parquet, validation.parquet but no rules.json"):
        make(tmp_path / "a")
    with pytest.raises(SystemExit, match="--num_test must be at least 1, got 0"):
        make(tmp_path / "b", "--num_test", "0")
    with pytest.raises(SystemExit, match="--max_length must be over 4"):
        make(tmp_path / "b", "--max_length", "4", "--min_length", "0")
    with pytest.raises(SystemExit, match="--seed must be at least 0, got -1"):
        make(tmp_path / "b", "--seed", "-1")
    assert not (tmp_path / "b").exists()
    (tmp_path / "a/rules.json").write_text("{")
    with pytest.raises(SystemExit, match=r"a' has a rules.json that cannot be read \(.*\): choose another folder"):
        make(tmp_path / "a")
    with pytest.raises(SystemExit, match="rules.json' is a file; name a folder"):
        make(tmp_path / "a/rules.json")


# --------------------------------------------------------------------------------------------------------------------
# Tokenizers, and training
# --------------------------------------------------------------------------------------------------------------------


TEXTS = ["Grüße, 漢字 🙂 e\u0301!", "", "  two  spaces, don't 's . \r\n\t\x00\x7f", "[PAD] <0x41> [UNK]"]


def test_every_byte_is_a_token(tmp_path):
    tokenizer = make_byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        for text in [*TEXTS, "".join(map(chr, range(0x250)))]:
            ids = each(text).input_ids
            assert ids == [byte + 1 for byte in text.encode("utf-8")]
            assert each.decode(ids) == text
        assert len(each) == 257 and each.pad_token_id == 0
        padded = each(["ab", "é…"], padding=True)
        assert padded["input_ids"] == [[98, 99, 0, 0, 0], [196, 170, 227, 129, 167]]
        assert padded["attention_mask"] == [[1, 1, 0, 0, 0], [1] * 5] and len(padded) == 2
        assert each("abcdef", truncation=True, max_length=3).input_ids == [98, 99, 100]


def test_every_word_is_a_token(tmp_path):
    tokenizer = train_word_tokenizer(["b [MAX a, b\n]", "É b [PAD]"])
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        words = ["[PAD]", "[UNK]", "b", "[MAX", "]", "a,", "É"]
        assert each.get_vocab() == {word: i for i, word in enumerate(words)} and len(each) == 7
        assert each("  a,\tb new É ]").input_ids == [5, 2, 1, 6, 4]
        assert each("a").input_ids == [each.unk_token_id] and each.pad_token_id == 0
        assert each.decode(each("[MAX a, b ]").input_ids) == "[MAX a, b ]"
        assert each(["a, b", "b"], padding=True)["input_ids"] == [[5, 2], [2, 0]]


def test_words_are_in_the_same_order_every_time():
    texts = [f"w{i % 97} w{i % 89}" for i in range(500)]  # many that are equally common
    vocabularies = [train_word_tokenizer(texts).get_vocab() for _ in range(4)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies) and len(vocabularies[0]) == 99


@pytest.mark.parametrize("tokenizer", ["bytes", "words"])
def test_a_vocabulary_that_is_given_has_no_size(tokenizer):
    with pytest.raises(ValueError, match=f"--vocab_size 8000 is for --tokenizer wordpiece; .*--tokenizer {tokenizer} "):
        train_text_classification.parse_arguments(["--tokenizer", tokenizer, "--vocab_size", "8000"])
    with pytest.raises(ValueError, match="--tokenizer shape a new model, but --model_name_or_path"):
        train_text_classification.parse_arguments(["--tokenizer", tokenizer, "--model_name_or_path", "x"])


def test_majority_is_of_the_training_labels():
    labels = Labels(Dataset.from_dict({"label": ["a", "b", "c"]}), "label")
    assert labels.majority([1, 1, 2, 0], [2, 2, 1, 0]) == 0.25  # though 2 is commoner there
    assert labels.majority([2, 2, 1, 1], [2, 2, 1]) == pytest.approx(1 / 3)
    assert labels.majority([0], [1, 2]) == 0
    assert Labels(Dataset.from_dict({"label": [0.5, 1.0]}), "label").majority([0.5], [0.5]) is None


@pytest.mark.parametrize("tokenizer, vocabulary", [("bytes", 257), ("words", 2 + 4 + 1 + 10)])
def test_script_trains_on_listops(tokenizer, vocabulary, tmp_path, scripts):
    make(tmp_path / "listops", "--num_train", "400", "--min_length", "3", "--max_length", "12")
    printed = scripts.run(
        *(ROOT / "scripts/train_text_classification.py", "--dataset_dir", tmp_path / "listops"),
        *("--output_dir", tmp_path / "model", "--tokenizer", tokenizer, "--test_split", "test", "--max_steps", "3"),
        *("--hidden_size", "32", "--num_hidden_layers", "1", "--use_cpu", "--disable_tqdm", "true"),
    ).stdout
    results = json.loads((tmp_path / "model/results.json").read_text())
    commonest, _ = Counter(label for _, label in rows(tmp_path / "listops", "train")).most_common(1)[0]
    share = sum(label == commonest for _, label in rows(tmp_path / "listops", "validation")) / 30
    assert results["majority"] == pytest.approx(share) and f"majority {share:.4f}" in printed
    assert results["steps"] == 3 and 0 <= results["metrics"]["accuracy"] <= 1 and results["test_samples"] == 20
    assert results["config"]["vocab_size"] == vocabulary and len(results["config"]["id2label"]) == 10
    card = ModelCard.load(tmp_path / "model/README.md").content
    assert f"commonest label of the training examples has accuracy {share:.4f}" in card and "{{" not in card
    saved = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = rows(tmp_path / "listops", "test")[0][0]
    ids = saved(text).input_ids
    assert len(saved) == vocabulary and saved.decode(ids) == text
    assert len(ids) == (len(text) if tokenizer == "bytes" else len(text.split()))
