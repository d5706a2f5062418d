from __future__ import annotations

from pathlib import Path

import pytest

from vadtune.core.errors import OutputError, VadtuneError
from vadtune.core.files import check_new_folder, fetch_folder, new_folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("existing", [False, True])
def test_a_new_folder_appears_with_all_its_files(existing: bool, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    if existing:
        folder.mkdir(parents=True)
    with new_folder(folder) as temporary:
        (temporary / "a").write_text("1")
        assert not contents(folder)
    assert contents(tmp_path) == {"deep/folder/a": "1"}
    assert folder.stat().st_mode & 0o755 == 0o755, "not private, as temporary folders are"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_block_that_fails_leaves_everything_as_it_was(overwrite: bool, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if overwrite:
        (folder / "old").write_text("1")
    with pytest.raises(KeyError), new_folder(folder, overwrite=overwrite) as temporary:  # noqa: PT012
        (temporary / "a").write_text("2")
        raise KeyError
    assert contents(tmp_path) == ({"folder/old": "1"} if overwrite else {})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("1")
    with pytest.raises(OutputError, match="must be new or empty, and is not"), new_folder(tmp_path / "folder"):
        pass
    with new_folder(tmp_path / "folder", overwrite=True) as temporary:
        (temporary / "new").write_text("2")
    assert contents(tmp_path) == {"folder/new": "2"}


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for check in (check_new_folder, lambda folder: new_folder(folder, overwrite=True).__enter__()):
        with pytest.raises(OutputError, match=r"folder: cannot be written \(.*\); name another folder"):
            check(tmp_path / "file" / "folder")


def test_a_fetched_folder_is_whole_or_absent(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "a").write_text("1")
    fetch_folder((tmp_path / "remote").as_uri(), tmp_path / "local")
    assert contents(tmp_path / "local") == {"a": "1"}
    with pytest.raises(VadtuneError, match=r"nowhere: cannot be fetched"):
        fetch_folder((tmp_path / "nowhere").as_uri(), tmp_path / "other")
    assert not (tmp_path / "other").exists()
