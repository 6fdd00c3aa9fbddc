"""Which name means what, and what is near to a name that nobody knows."""

import pytest

from bart_hk import zoo
from bart_hk.zoo import names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("bart.base", "bart.base"),
        ("bart.large.cnn", "bart.large.cnn"),
        ("bart_large_mnli", "bart.large.mnli"),
        ("bart.mini", "bart.mini"),
        ("bart_mini", "bart.mini"),
        ("bart-large", None),
        ("Bart.base", None),
        ("bart.large.cnn/", None),
    ],
)
def test_published_names(text, name):
    assert names.published_name(text) == name


def test_archives_are_fairseqs():
    assert sorted(names.ARCHIVES) == [
        "bart.base",
        "bart.large",
        "bart.large.cnn",
        "bart.large.mnli",
        "bart.large.xsum",
    ]
    for name, url in names.ARCHIVES.items():
        assert url == f"https://dl.fbaipublicfiles.com/fairseq/models/{name}.tar.gz"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("facebook/bart-large-cnn", True),
        ("moussaKam/barthez", True),
        ("a/b.c_d-1", True),
        ("bart-large", False),
        ("checkpoints/model.pt", False),
        ("models/bart.base.TAR.gz", False),
        ("./facebook/bart", False),
        ("../bart", False),
        ("/facebook/bart", False),
        ("a/b/c", False),
        ("~/bart", False),
        ("owner/näme", False),
    ],
)
def test_what_can_be_a_repository(text, expected):
    assert names.is_repository(text) is expected


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("bart.larg.cnn", "bart.large.cnn"),
        ("bart-large-cnn", "bart.large.cnn"),
        ("BART.BASE", "bart.base"),
        ("bart_large.xsum", "bart.large.xsum"),
        ("bart.large.mlni", "bart.large.mnli"),
        ("distilbart-cnn-6-6", "sshleifer/distilbart-cnn-6-6"),
        ("barthes", "moussaKam/barthez"),
        ("facebok/bart-large-xsum", "facebook/bart-large-xsum"),
        ("facebook/bart-large-cn", "facebook/bart-large-cnn"),
        ("bart-mini", "bart.mini"),
    ],
)
def test_the_nearest_come_first(text, first):
    found = names.nearest(text)
    assert found[0] == first
    assert len(found) <= 3


def test_nothing_is_near_to_nonsense():
    assert names.nearest("gpt2") == []
    assert names.did_you_mean([]) == ""


def test_an_unknown_name_is_one_line_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        zoo.locate("bart.large.cmn")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("no model 'bart.large.cmn': there is no directory or file ")
    assert str(tmp_path / "bart.large.cmn") in message
    assert "bart.mini, bart.latent, bart.base, bart.large, " in message  # every name is listed
    assert "did you mean bart.large.cnn, or facebook/bart-large-cnn" in message


def test_a_misspelt_path_is_answered_with_its_neighbour(tmp_path):
    (tmp_path / "my-model").mkdir()
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match=f"did you mean {tmp_path}/my-model\\?"):
        zoo.locate(tmp_path / "my-modle")


def test_without_anything_near_nothing_is_suggested(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        zoo.locate(tmp_path / "quite" / "different.pt")
    assert "did you mean" not in str(caught.value)
