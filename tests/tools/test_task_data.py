import zipfile

from tools import task_data


def archive(path, files):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def table(path):
    return [tuple(line.split("\t")) for line in path.read_text().splitlines()]


def test_tatoeba_never_splits_an_english_sentence(tmp_path):
    pairs = [(f"Sentence {i % 200}.", f"Satz {i}.") for i in range(600)]
    content = "\ufeff" + "".join(f"{a}\t{b}\r\n" for a, b in pairs)
    path = archive(tmp_path / "a.zip", {"deu.txt": content, "_about.txt": "x"})
    assert task_data.main(["tatoeba", str(path), str(tmp_path / "out")]) == 0
    tables = [table(tmp_path / "out" / f"{name}.tsv") for name in ("train", "valid", "test")]
    assert all(rows[0] == ("en", "de") for rows in tables)
    english = [{row[0] for row in rows[1:]} for rows in tables]
    assert all(english) and not (english[0] & english[1] or english[0] & english[2])
    assert sorted(row for rows in tables for row in rows[1:]) == sorted(pairs)


def test_trec_has_coarse_classes_and_its_own_test_file(tmp_path):
    train = "".join(f"DESC:manner How {i} ?\nHUM:ind Who {i} ?\n" for i in range(200))
    files = {"qc/train.txt": train, "qc/test.txt": "NUM:dist How far caf\u00e9 ?\n"}
    path = archive(tmp_path / "qc.zip", {k: v.encode("latin-1") for k, v in files.items()})
    assert task_data.main(["trec", str(path), str(tmp_path)]) == 0
    assert table(tmp_path / "test.tsv") == [("text", "label"), ("How far caf\u00e9 ?", "NUM")]
    rows = [table(tmp_path / f"{name}.tsv")[1:] for name in ("train", "valid")]
    assert len(rows[0]) + len(rows[1]) == 400 and 15 < len(rows[1]) < 65
    assert {label for _, label in rows[0]} == {"DESC", "HUM"}


def test_subjectivity(tmp_path, capsys):
    files = {
        "s/plot.tok.gt9.5000": "".join(f"plot {i} . \n" for i in range(20)),
        "s/quote.tok.gt9.5000": "".join(f"quote {i} . \n" for i in range(20)).encode("cp1252"),
    }
    path = archive(tmp_path / "s.zip", files)
    assert task_data.main(["subjectivity", str(path), str(tmp_path)]) == 0
    assert table(tmp_path / "valid.tsv") == [
        *(("text", "label"), ("plot 8 .", "objective"), ("plot 18 .", "objective")),
        *(("quote 8 .", "subjective"), ("quote 18 .", "subjective")),
    ]
    assert task_data.main(["trec", str(path), str(tmp_path)]) == 2
    assert "has 0 files that end with train.txt" in capsys.readouterr().err
