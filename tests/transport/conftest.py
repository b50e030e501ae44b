"""Certificates for the tests."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme


@dataclass
class Files:
    """Paths of files, of an authority and of what it has signed."""

    ca: str
    certificate: str
    expired: str
    other_ca: str


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("certificates")
    ca, other = trustme.CA(), trustme.CA()
    long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    made = Files(*(str(folder / name) for name in ("ca.pem", "certificate.pem", "expired.pem", "other.pem")))
    ca.cert_pem.write_to_path(made.ca)
    other.cert_pem.write_to_path(made.other_ca)
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(made.certificate)
    expired = ca.issue_cert("localhost", not_before=long_ago, not_after=long_ago + datetime.timedelta(days=1))
    expired.private_key_and_cert_chain_pem.write_to_path(made.expired)
    assert Path(made.ca).exists()
    return made
