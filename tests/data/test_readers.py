import gzip
import json
import lzma

import pytest

from bart_hk.data.readers import DataError, read_examples, read_table


def write(tmp_path, name, text, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def test_tsv_is_read_without_quoting_and_cut_at_line_feeds_only(tmp_path):
    path = write(tmp_path, "a.tsv", 'sentence\tlabel\n"quite\u2028good\tpos\nbad"\tneg\n')
    examples = read_examples(path)
    assert examples.texts == [('"quite\u2028good',), ('bad"',)]
    assert examples.labels == ["pos", "neg"]
    assert examples.where(1) == f"{path}, line 3"


def test_byte_order_mark_crlf_and_empty_lines_at_the_end(tmp_path):
    path = write(tmp_path, "a.tsv", b"\xef\xbb\xbfsentence\tlabel\r\nfine\t1\r\n\r\n\n")
    examples = read_examples(path)
    assert (examples.texts, examples.labels) == ([("fine",)], ["1"])


def test_csv_with_quotes_and_lines_inside_a_field(tmp_path):
    path = write(tmp_path, "a.csv", 'label,text\r\nx,"one, ""two""\nthree"\r\ny,four\r\n')
    examples = read_examples(path)
    assert examples.texts == [('one, "two"\nthree',), ("four",)]
    assert examples.lines == [2, 4]


def test_jsonl_with_numbers_as_labels_and_other_fields(tmp_path):
    rows = [{"text": "a", "label": 1, "x": [1]}, {"label": 0.5, "text": "b", "x": None}]
    rows[0]["note"] = rows[1]["note"] = "\U0001f600"  # a whole pair of surrogates in JSON
    path = write(tmp_path, "a.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    examples = read_examples(path)
    assert (examples.texts, examples.labels) == ([("a",), ("b",)], ["1", "0.5"])
    path.write_text('{"text": 5, "label": ["x", "y"]}\n{"text": "[b]", "label": true}\n')
    examples = read_examples(path, several_labels=True)
    assert (examples.texts, examples.labels) == ([("5",), ("[b]",)], ['["x", "y"]', "true"])


def test_compressed_files(tmp_path):
    path = write(tmp_path, "a.tsv.gz", gzip.compress(b"text\tlabel\nfine\t1\n"))
    assert read_examples(path).texts == [("fine",)]


@pytest.mark.parametrize(
    ("header", "texts", "label"),
    [
        ("sentence\tlabel", ("sentence",), "label"),
        ("index\tsentence1\tsentence2\tlabel", ("sentence1", "sentence2"), "label"),
        ("index\tquestion\tsentence\tlabel", ("question", "sentence"), "label"),
        ("index\tgenre\tsentence1\tsentence2\tscore", ("sentence1", "sentence2"), "score"),
        ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", ("#1 String", "#2 String"), "Quality"),
        ("label\tutterance", ("utterance",), "label"),
    ],
)
def test_columns_are_found_by_their_names(tmp_path, header, texts, label):
    row = "\t".join(f"v{i}" for i in range(header.count("\t") + 1))
    examples = read_examples(write(tmp_path, "a.tsv", f"{header}\n{row}\n"))
    assert (examples.text_columns, examples.label_column) == (texts, label)
    assert examples.texts == [tuple(row.split("\t")[header.split("\t").index(t)] for t in texts)]


def test_columns_asked_for(tmp_path):
    path = write(tmp_path, "a.tsv", "sentence\tlabel\tnote\tkind\nv0\tv1\tv2\tv3\n")
    examples = read_examples(path, ["note"], "kind")
    assert (examples.texts, examples.labels) == ([("v2",)], ["v3"])
    with pytest.raises(DataError, match="no column 'sentense', only .* did you mean 'sentence'"):
        read_examples(path, ["sentense"])
    with pytest.raises(DataError, match="one or two names, not 3"):
        read_examples(path, ["sentence", "note", "kind"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", "a.tsv is empty"),
        ("a.tsv", "sentence\tlabel\n", "a header and no rows"),
        ("a.tsv", "sentence\tlabel\na\t1\nb\n", "line 3: 1 columns where the header has 2"),
        ("a.tsv", "sentence\tlabel\na\t1\n\nb\t1\n", "line 3: 1 columns"),
        ("a.tsv", "sentence\tlabel\n  \t1\n", "line 2: 'sentence' is empty"),
        ("a.tsv", "sentence\tlabel\na\t\n", "line 2: 'label' is empty"),
        ("a.tsv", "sentence\tsentence\na\t1\n", "line 1: two columns are named 'sentence'"),
        ("a.tsv", "sentence\tkind\na\t1\n", "no column 'label'.*task.label_column"),
        ("a.tsv", "a\tb\tlabel\nx\ty\t1\n", "columns a, b, label.*task.text_columns"),
        ("a.tsv", b"sentence\tlabel\na\t1\nna\xefve\t1\n", "line 3: not UTF-8 .byte 0xef at col"),
        ("a.csv", 'sentence,label\na,1\n"b"x,1\n', "line 3: '.' expected after"),
        ("a.csv", 'sentence,label\na,1\n"b,1\nc,1\n', "line 3: unexpected end of data"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", '{"text": "a", "label": 1}\n[1]\n', "line 2: not a JSON object"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2: 'label' is missing"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": null, "label": 1}\n', "line 2: 'text' is"),
        ("a.jsonl", '{"text": ' + "[" * 100000, "line 1: not JSON .maximum recursion"),
        ("a.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}", "line 1: not JSON .*digits"),
        ("a.jsonl", '{"text": "a \\ud800b", "label": 1}', r"line 1: .ud800 is half of a surrogate"),
        (
            "a.jsonl",
            '{"text": ["a"], "label": 1}',
            "line 1: 'text' is a list, and a text is wanted",
        ),
        ("a.jsonl", '{"text": true, "label": 1}', "line 1: 'text' is true, and a text is wanted"),
        ("a.jsonl", '{"text": "a", "label": ["x"]}', "line 1: 'label' is a list.*task.multi_label"),
        ("a.jsonl", '{"text": "a", "label": {}}', "line 1: 'label' is an object"),
        ("a.txt", "x", "use .tsv, .csv, .jsonl"),
        ("a.tsv.gz", b"nonsense", "cannot be read"),
    ],
)
def test_malformed_files_name_the_line(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as error:
        read_examples(write(tmp_path, name, content))
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="none.tsv does not exist"):
        read_examples(tmp_path / "none.tsv")
    with pytest.raises(DataError, match="is a folder; name a file"):
        read_examples(tmp_path)


def test_xz_is_unpacked_and_a_damaged_file_is_named(tmp_path):
    packed = tmp_path / "data.tsv.xz"
    packed.write_bytes(lzma.compress(b"text\tlabel\na b\t1\n"))
    examples = read_examples(packed)
    assert examples.texts == [("a b",)] and examples.lines == [2]
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataError, match="data.tsv.xz cannot be read"):
        read_examples(packed)


def test_a_table_without_a_header_and_with_malformed_rows(tmp_path):
    path = tmp_path / "data.tsv"
    path.write_text("x\t1\na\tb\tc\ny\t2\n")
    table = read_table(path, ["text", "label"], skip_malformed=True)
    assert [record.fields for record in table.records] == [["x", "1"], ["y", "2"]]
    assert table.where(1) == f"{path}, line 3" and table.column("label") == 1
    with pytest.raises(DataError, match="line 2: 3 columns where the header has 2"):
        read_table(path, ["text", "label"])
    with pytest.raises(DataError, match="no column 'lable', only text, label; did you mean"):
        table.column("lable")
