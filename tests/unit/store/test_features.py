"""A store gives back the bits that were put into it, or nothing, whatever happens to its files."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.toy_data import SHAPE, features

from panollava.store.catalogue import StoreOptions, clear_stores, kept_stores, open_store
from panollava.store.features import FeatureStore
from panollava.store.quota import IDLE_S, MARK, folder_bytes

Opened = Callable[..., FeatureStore]
ONE, TWO, THREE = ("0" * 63 + digit for digit in "123")


def shard(store: FeatureStore, picture: str = ONE) -> Path:
    return store.folder / picture[:2] / f"{picture}.safetensors"


def test_what_is_put_is_read_to_the_bit_by_every_process(opened: Opened) -> None:
    torch.manual_seed(0)
    value = torch.randn(SHAPE).bfloat16()
    assert opened().get(ONE) is None
    assert opened().put(ONE, value)
    again = opened()
    for store in (again, pickle.loads(pickle.dumps(again))):
        found = store.get(ONE)
        assert found is not None
        assert found.dtype is value.dtype
        assert torch.equal(found.view(torch.int16), value.view(torch.int16))
    assert again.get(TWO) is None
    assert again.count() == 1


def test_another_encoder_has_another_store(opened: Opened) -> None:
    opened("one").put(ONE, features(1))
    assert opened("another").get(ONE) is None
    assert opened("one").get(ONE) is not None


def test_a_store_of_the_same_encoder_on_another_machine_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, when the new one is made; another crop is another matter."""
    options = StoreOptions(dir=str(tmp_path / "cache"))

    def made(device: str, overlap: float = 0.5) -> str:
        caplog.clear()
        libraries = {"torch": "2"}
        of = {
            "encoder": {"weights": "w", "device": device, "libraries": libraries},
            "crop": {"overlap": overlap, "device": "cpu"},
        }
        with caplog.at_level("INFO"):
            made = open_store(options, "tiny", of, shape=SHAPE, dtype=torch.bfloat16)
        return "" if "encoded again" not in caplog.text else f"{made.folder} {caplog.text}"

    assert made("cuda A100") == ""
    told = made("cuda H100")
    assert "encoder.device: cuda A100 there, cuda H100 here" in told
    assert all(str(kept.folder) in told for kept in kept_stores(options.dir))
    assert made("cuda H100") == ""
    assert made("cuda H100", overlap=0.0) == ""


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit", "other picture", "other shape", "other type", "pickle"])
def test_a_damaged_shard_is_told_of_and_made_again(
    opened: Opened, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened().put(ONE, features(1))
    store = opened()
    store.put(TWO, features(2))
    path = shard(store)
    whole = path.read_bytes()
    meta = {"picture": ONE, "crc32": "0"}
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(whole[:-1])
    elif damage == "one bit":
        path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    elif damage == "other picture":
        shutil.copy(shard(store, TWO), path)
    elif damage == "other shape":
        save_file({"features": torch.zeros(2, 3, 5, dtype=torch.bfloat16)}, path, metadata=meta)
    elif damage == "other type":
        save_file({"features": torch.zeros(SHAPE)}, path, metadata=meta)
    else:
        torch.save(features(1), path)
    assert store.get(ONE) is None
    assert store.damaged == 1
    assert str(path) in caplog.text
    assert store.put(ONE, features(1))
    assert torch.equal(opened().get(ONE), features(1))  # type: ignore[arg-type]


def test_only_one_claims_until_it_lets_go(opened: Opened) -> None:
    one, other = opened(), opened()
    claim = one.claim(ONE)
    assert claim is not None
    assert other.claim(ONE) is None
    free = other.claim("1" * 64)
    assert free is not None
    free.release()
    claim.release()
    taken = other.claim(ONE)
    assert taken is not None
    taken.release()


def test_the_claim_and_the_rest_of_a_killed_writer_are_in_nobodys_way(opened: Opened) -> None:
    """Killed while it writes: the claim is free at once, the temporary file is never read, and swept when it is old."""
    store = opened()
    store.put(TWO, features(2))
    program = (
        "import pickle, sys, time, pathlib\n"
        "store = pickle.loads(sys.stdin.buffer.read())\n"
        f"claim = store.claim('{ONE}')\n"
        f"half = store.folder / '00' / '.tmp-half'\n"
        f"half.write_bytes((store.folder / '00' / '{TWO}.safetensors').read_bytes()[:100])\n"
        "sys.stdout.write('ready'); sys.stdout.flush(); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(pickle.dumps(store))
    process.stdin.close()
    assert process.stdout.read(5) == b"ready"
    assert store.claim(ONE) is None
    process.kill()
    process.wait()
    claim = store.claim(ONE)
    assert claim is not None
    assert store.get(ONE) is None
    assert store.put(ONE, features(1))
    claim.release()
    half = store.folder / "00" / ".tmp-half"
    opened()
    assert half.exists()
    os.utime(half, (time.time() - 7200, time.time() - 7200))
    opened()
    assert not half.exists()


def test_a_full_store_says_so_once_and_goes_on_with_what_it_has(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    opened()
    used = folder_bytes(opened().folder)
    store = opened(max_gib=(used + 1000) / 2**30)
    kept = [store.put(picture, features(1)) for picture in (ONE, TWO, THREE)]
    assert kept == [True, True, False]
    assert store.is_full
    assert "all stores hold what store.max_gib=" in caplog.text
    assert caplog.text.count("keeps nothing more") == 1
    assert store.get(ONE) is not None
    assert folder_bytes(store.folder) <= used + 1000


def test_a_disk_that_is_nearly_full_is_not_called_the_limit(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("panollava.store.quota.SPARE_BYTES", 2**60)
    assert not opened().put(ONE, features(1))
    assert "the disk has less than" in caplog.text
    assert "max_gib" not in caplog.text


def test_a_store_of_somebody_else_is_read(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Read and not written: neither its lock, nor its marks, nor a panorama."""
    opened().put(ONE, features(1))

    def refuses(*args: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("panollava.store.quota.FileLock", refuses)
    monkeypatch.setattr("panollava.store.features.os.utime", refuses)
    store = opened()
    found = store.get(ONE)
    assert found is not None
    assert torch.equal(found, features(1))
    assert not store.put(TWO, features(2))
    assert caplog.text.count("keeps nothing more: [Errno 30]") == 1
    with pytest.raises(OSError, match=r"could not be written \(Read-only file system\)"):
        clear_stores(StoreOptions(dir=str(tmp_path / "cache")), [])


def test_the_limit_holds_for_all_processes_together(opened: Opened) -> None:
    limit = (folder_bytes(opened().folder) + 1000) / 2**30
    stores = [opened(max_gib=limit) for _ in range(3)]
    assert [store.put(picture, features(1)) for store, picture in zip(stores, (ONE, TWO, THREE), strict=True)] == [
        True,
        True,
        False,
    ]


def test_a_store_that_nobody_uses_gives_way_and_its_reader_survives(opened: Opened) -> None:
    old = opened("old")
    old.put(ONE, features(1))
    limit = (folder_bytes(old.folder) + 500) / 2**30
    mapped = old.get(ONE)
    new = opened("new", max_gib=limit)
    assert not new.put(TWO, features(2))  # the old one may be in use
    idle = time.time() - 2 * IDLE_S
    os.utime(old.folder / MARK, (idle, idle))
    new = opened("new", max_gib=limit)
    assert new.put(TWO, features(2))
    assert not old.folder.exists()
    assert mapped is not None
    assert torch.equal(mapped, features(1))
    assert old.get(ONE) is None


def test_cleared_while_it_is_used(opened: Opened, tmp_path: Path) -> None:
    """Whoever uses it finds nothing, makes it again, and it is a store again."""
    store = opened()
    store.put(ONE, features(1))
    options = StoreOptions(dir=str(tmp_path / "cache"))
    (kept,) = kept_stores(options.dir)
    assert (kept.folder, kept.panoramas) == (store.folder, 1)
    clear_stores(options, [kept])
    assert kept_stores(options.dir) == []
    store.touch()
    assert store.get(ONE) is None
    claim = store.claim(ONE)
    assert claim is not None
    assert store.put(ONE, features(1))
    claim.release()
    assert [kept.panoramas for kept in kept_stores(options.dir)] == [1]


def test_a_disk_that_fails_is_told_of_and_costs_nothing_but_the_keeping(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened()

    def fails(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("panollava.store.features.save_file", fails)
    assert not store.put(ONE, features(1))
    assert "No space left" in caplog.text
    assert store.is_full
    assert not list(store.folder.glob("*/.tmp-*"))


def test_a_claim_that_the_disk_refuses_stops_the_keeping(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    store = opened()
    (store.folder / "locks").write_text("a file where a folder should be")
    assert store.claim(ONE) is None
    assert store.is_full
    assert "keeps nothing more" in caplog.text
