# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Documents that are read in pieces: the answer of the whole, what they are made of, and what is refused."""

import json

import pytest
import read_documents
import tokenizers
import torch
from datasets import Dataset
from reporting.benchmarks import documents_text
from tokenizers import models, processors
from training.data import load_splits
from training.tokenization import make_byte_tokenizer, train_wordpiece_tokenizer
from transformers import PreTrainedTokenizerFast

from astroformer_hf import AstroformerConfig, AstroformerForSequenceClassification


TEXTS = {"bad": "dull, dull. ", "good": "lovely! "}


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"text": text + str(i), "label": name} for name, text in TEXTS.items() for i in range(20)]
    Dataset.from_list(rows).to_parquet(folder / "validation.parquet")
    return folder


def save_model(folder, **fields):
    """A model of bytes in segments of 8 that has learned nothing, but answers loudly."""
    tokenizer = make_byte_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    segments = {"segment_length": 8, "num_memory_tokens": 3, "pooling": "last"}
    labels = {"id2label": dict(enumerate(TEXTS)), "label2id": {name: i for i, name in enumerate(TEXTS)}}
    config = AstroformerConfig(vocab_size=len(tokenizer), **sizes, **{**labels, **segments, **fields})
    model = AstroformerForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_documents_are_read_in_pieces_as_at_once(data_dir, tmp_path, capsys):
    arguments = ["--model", save_model(tmp_path / "model"), "--dataset_dir", str(data_dir)]
    arguments += ["--length", "75", "--documents", "2", "--piece", "2", "--output_dir", str(tmp_path / "found")]
    (tmp_path / "model/results.json").write_text('{"command": "how it was trained"}')
    read_documents.main(arguments)
    record = json.loads((tmp_path / "found/documents.json").read_text())
    assert record["documents"] == 4 and record["length"] == 75 and record["piece"] == 16
    assert record["largest_difference"] < 1e-5
    assert record["accuracy"]["at once"] == record["accuracy"]["in pieces"]
    peaks = {(row["length"], row["way"]): row["peak_bytes"] for row in record["reading"]}
    assert set(peaks) == {(n, way) for n in (7, 75) for way in ("at once", "in pieces")}
    assert peaks[75, "in pieces"] < peaks[75, "at once"]
    printed = capsys.readouterr().out
    assert "document 4 of 4" in printed and "accuracy on 4 documents of 75 tokens" in printed
    text = "\n".join(documents_text([record]))
    assert f"| {record['accuracy']['in pieces']:.1%} |" in text and "4 documents of 75 tokens" in text
    assert "The model: `how it was trained`" in text


def test_a_document_is_of_one_label(data_dir):
    data = load_splits(dataset_dir=str(data_dir))["validation"]
    documents = read_documents.make_documents(data["text"], data["label"], make_byte_tokenizer(), 75, 2)
    texts = [(name, make_byte_tokenizer().decode(ids[0])) for name, ids in documents]
    assert [name for name, _ in texts] == ["bad", "bad", "good", "good"]
    assert len({text for _, text in texts}) == 4  # no text is in two documents
    for name, text in texts:
        (other,) = set(TEXTS) - {name}
        assert text.startswith(TEXTS[name]) and TEXTS[other][:5] not in text and len(text) == 75


def test_a_file_is_read_in_pieces(tmp_path, capsys):
    folder = save_model(tmp_path / "model")
    (tmp_path / "book.txt").write_text("A lovely book. " * 9, encoding="utf-8")
    read_documents.main(["--model", folder, "--text_file", str(tmp_path / "book.txt"), "--piece", "3"])
    printed = capsys.readouterr().out
    model = AstroformerForSequenceClassification.from_pretrained(folder).eval()
    ids = make_byte_tokenizer()("A lovely book. " * 9, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        probability, label = model(ids).logits.softmax(-1).max(-1)
    assert f"{model.config.id2label[label.item()]} ({probability.item():.0%}), 135 tokens" in printed


def test_special_tokens_stand_around_a_document_as_around_a_text(data_dir):
    tokenizer = train_wordpiece_tokenizer([*TEXTS.values(), "0 1 2 3 4 5 6 7 8 9"], 80)
    text = "lovely! dull, dull."
    document = read_documents.document_of(read_documents.token_ids(text, tokenizer), tokenizer)
    assert document.tolist() == [tokenizer(text).input_ids]
    data = load_splits(dataset_dir=str(data_dir))["validation"]
    for _, ids in read_documents.make_documents(data["text"], data["label"], tokenizer, 30, 1):
        assert ids.shape == (1, 30) and (ids[0, 0], ids[0, -1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert not {tokenizer.cls_token_id, tokenizer.sep_token_id} & set(ids[0, 1:-1].tolist())


def test_special_tokens_where_the_vocabulary_has_no_latin_letters():
    backend = tokenizers.Tokenizer(models.BPE({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "д": 3, "а": 4}, []))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    document = read_documents.document_of(read_documents.token_ids("да", tokenizer), tokenizer)
    assert document.tolist() == [tokenizer("да").input_ids] == [[1, 3, 4, 2]]


@pytest.mark.parametrize(
    "fields, more, message",
    [
        ({"segment_length": None}, [], "has segment_length None and pooling 'last'"),
        ({"memory_retention": "ltp"}, [], "memory_retention 'ltp', which goes by the number of segments"),
        ({"pooling": "mean"}, [], "has segment_length 8 and pooling 'mean'"),
        ({"problem_type": "regression"}, [], "one label of several to a text; .* has problem_type 'regression'"),
        ({"id2label": {0: "bad"}, "label2id": {"bad": 0}}, [], "problem_type None and 1 labels"),
        ({}, ["--length", "5000"], "--length 5000: no label of split validation has texts of so many tokens"),
        ({}, ["--split", "test"], "no split 'test'"),
    ],
)
def test_what_cannot_be_read(data_dir, tmp_path, fields, more, message):
    folder = save_model(tmp_path / "model", **fields)
    with pytest.raises(ValueError, match=message):
        read_documents.main(["--model", folder, "--dataset_dir", str(data_dir), *more])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "x"], "give --text_file or --dataset_dir"),
        (["--model", "x", "--dataset_dir", "y", "--piece", "0"], "--piece must be at least 1, got 0"),
        (["--model", "x", "--dataset_dir", "y", "--length", "9"], "--length must be at least 10, got 9"),
        (["--model", "x", "--text_file", "y", "--output_dir", "z"], "--output_dir records the documents of"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        read_documents.main(arguments)
    assert message in capsys.readouterr().err


def test_files_that_cannot_be_read(data_dir, tmp_path):
    folder = save_model(tmp_path / "model")
    tokenizer = train_wordpiece_tokenizer([*TEXTS.values(), "0 1 2 3 4 5 6 7 8 9"], 80)  # which adds tokens of its own
    tokenizer.save_pretrained(folder)
    (tmp_path / "latin.txt").write_bytes("sch\xf6n".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    cases = {"latin.txt": "must be text in UTF-8; byte 3 is not", "empty.txt": "is empty", "none.txt": "No such file"}
    for name, message in {**cases, "data": "Is a directory"}.items():
        with pytest.raises(ValueError, match=rf"--text_file .*{name} .*{message}"):
            read_documents.main(["--model", folder, "--text_file", str(tmp_path / name)])


def test_a_mark_of_utf_8_is_no_text(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "book.txt").write_text("A lovely book.", encoding=encoding)
        assert read_documents.read_text(tmp_path / "book.txt") == "A lovely book."


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ({"text": ["a", None], "label": ["bad", "good"]}, "row 1 of split 'validation' has 'None' and 'good'"),
        ({"text": ["a"], "label": [["bad"]]}, "row 0 of split 'validation' has 'a' and \"\\['bad'\\]\""),
    ],
)
def test_rows_without_a_text_or_a_label(rows, found, tmp_path):
    (tmp_path / "data").mkdir()
    Dataset.from_dict(rows).to_parquet(tmp_path / "data/validation.parquet")
    with pytest.raises(ValueError, match=f"a text and one label in each row; {found}"):
        read_documents.main(["--model", save_model(tmp_path / "model"), "--dataset_dir", str(tmp_path / "data")])


def test_a_record_that_cannot_be_written_is_an_error_before_the_reading(data_dir, tmp_path):
    (tmp_path / "found").write_text("")
    arguments = ["--model", "not looked at", "--dataset_dir", str(data_dir), "--output_dir", str(tmp_path / "found")]
    with pytest.raises(FileExistsError):
        read_documents.main(arguments)
