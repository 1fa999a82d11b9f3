import sys

import pytest
from gcs_double import status
from gcs_places import FIXTURES, failure

from model.errors import BadInput
from transforms.storage import open_store

double, store = FIXTURES


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"softDeletePolicy": {"retentionDurationSeconds": "604800"}}, ("7 days (soft delete)", "--clear-soft-delete")),
        ({"versioning": {"enabled": True}}, ("old versions", "--no-versioning")),
        ({"retentionPolicy": {"retentionPeriod": "86400"}}, ("1 days", "--clear-retention-period")),
        ({"defaultEventBasedHold": True}, ("hold", "--no-default-event-based-hold")),
        ({"storageClass": "COLDLINE"}, ("90 days", "--default-storage-class=STANDARD")),
        ({"location": "EU", "locationType": "multi-region"}, ("EU", "the workers' own region")),
        (
            {"lifecycle": {"rule": [{"action": {"type": "Delete"}, "condition": {"age": 30}}]}},
            ("removes objects after 30 days", "--lifecycle-file"),
        ),
    ],
)
def test_each_setting_that_costs_is_a_sentence_with_its_cure(double, store, setting, words):
    double.settings["b"] = setting
    (sentence,) = store.concerns()
    assert sentence.startswith("gs://b ")
    assert all(w in sentence for w in words)


@pytest.mark.parametrize(
    "condition", [{"age": 1, "matchesPrefix": ["elsewhere/"]}, {"isLive": False}, {"numNewerVersions": 3}]
)
def test_rules_that_touch_nothing_of_ours_are_no_concern(double, store, condition):
    rules = [{"action": {"type": "Delete"}, "condition": condition}]
    double.settings["b"] = {"lifecycle": {"rule": rules}, "softDeletePolicy": {"retentionDurationSeconds": "0"}}
    assert store.concerns() == []


def test_a_bucket_that_cannot_be_written_to_is_bad_input(double, store):
    double.settings["b"] = {"granted": ["storage.objects.get", "storage.objects.list"]}
    with pytest.raises(
        BadInput, match=r"storage\.objects\.create, storage\.objects\.delete.*roles/storage\.objectUser"
    ):
        store.concerns()
    double.settings["b"] = {}
    double.then("list", status(401))
    with pytest.raises(BadInput, match="application-default login"):
        store.concerns()


@pytest.mark.parametrize("url", ["gs://", "gs:///x", "gs://b/../x", "gs://b/x//y", "gs://b/./x"])
def test_an_address_without_a_bucket_or_with_a_crooked_folder_is_refused(url):
    with pytest.raises(BadInput, match="gs://bucket/folder"):
        open_store(url)


def test_where_the_library_is_missing_the_message_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    with pytest.raises(BadInput, match=r"pip install 'tessera-beam\[gcp\]'"):
        open_store("gs://b/x")


def test_without_credentials_the_message_tells_how_to_sign_in(monkeypatch, tmp_path):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    store = open_store("gs://b/x")
    assert "gcloud auth application-default login" in failure("refused", lambda: store.get("x"))
    with pytest.raises(BadInput, match="application-default login"):
        store.concerns()
